"""Searches and reads of shards: plans, threads, filter bitmaps and codes."""
