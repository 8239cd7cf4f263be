"""Random samples of streams of queries, and whether the streams have changed."""
