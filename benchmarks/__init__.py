"""Benchmarks: each compares Annheal side by side with plain FAISS in one run."""
