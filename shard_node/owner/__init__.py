"""An owned shard: its log, its manifest, opening, replay, checkpoints and publications."""
