"""Comparison by 8-bit codes: encode rows, scan the codes, compare exactly what is left."""
