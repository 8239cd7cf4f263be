"""The control loops of the coordinator that leads, and the garbage collection."""
