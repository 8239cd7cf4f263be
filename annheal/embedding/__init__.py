"""Turning text into vectors.

`bert-base-uncased-vocab.txt` is the WordPiece vocabulary of BERT (Google, Apache-2.0), one token a
line, the line number being the token's id. all-MiniLM-L6-v2 and paraphrase-MiniLM-L3-v2 use it.
"""
