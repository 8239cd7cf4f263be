"""Reads and writes on their way to the shards: validate, route, gather, fan out, merge."""
