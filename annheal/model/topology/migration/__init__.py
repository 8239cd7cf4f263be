"""The change of a collection's serving model: its state, its steps, and the gate before commit."""
