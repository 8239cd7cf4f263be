"""A shard at its owner: log, manifest, opening, replay, checkpoints and publications."""
