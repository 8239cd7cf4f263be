"""Scores of hits, their order, and merging of lists of hits."""
