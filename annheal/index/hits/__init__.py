"""Hits of a search: their scores, their order, and merging several lists of them."""
