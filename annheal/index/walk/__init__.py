"""The filtered walk over FAISS's HNSW graph, as compiled kernels."""
