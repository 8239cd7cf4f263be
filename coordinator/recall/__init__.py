"""Recall over all shards: measured on request, and joined from what the nodes found."""
