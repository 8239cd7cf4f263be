"""Recall of live queries: sampled, measured, estimated, kept, and acted on."""
