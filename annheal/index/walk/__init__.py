"""The filtered walk of FAISS's HNSW graphs, as compiled kernels."""
