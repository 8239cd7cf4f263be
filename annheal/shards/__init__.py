"""A shard on paper: its range of the hash, the legal changes of its manifest, its log's bytes."""
