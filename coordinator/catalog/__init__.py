"""What the metadata store says about collections, shards, nodes and tasks, followed."""
