"""Commands of those who use a cluster: collections, records, import, search, explain."""
