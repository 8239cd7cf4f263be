"""The rows of a shard in memory: growing rows, the view that a search sees, changes applied."""
