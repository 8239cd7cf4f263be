"""Commands of those who run a cluster: health, recall, filters, healing, tasks, placement."""
