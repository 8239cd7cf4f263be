"""Measures the recall of sampled queries in one shard: finds, and finds exactly."""
