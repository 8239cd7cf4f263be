"""What benchmarks load: real embeddings, synthetic rows, populations that change, filters."""
