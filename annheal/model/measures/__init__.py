"""What is measured: recall, its summary over shards, latency against query volume."""
