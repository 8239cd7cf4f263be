"""The write-ahead log: one object per group commit, in slots without gaps, and the fence."""
