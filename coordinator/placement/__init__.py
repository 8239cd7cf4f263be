"""Which node owns which shard: pure plans for placement and rebalancing."""
