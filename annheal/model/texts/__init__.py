"""Texts: which embedder turns them into the vectors of a model, and where a record's text is."""
