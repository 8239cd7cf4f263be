"""How a segment is searched: its plan, its threads, its filter bitmaps and codes."""
