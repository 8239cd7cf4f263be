"""Commands of those who run a cluster: health, recall, healing, tasks, placement, garbage."""
