"""Turning text into vectors.

`protocol` says what an embedder is, `texts` embeds any number of texts with one (batches, limits,
retries, checks of what comes back), `registry` makes one from a collection's specification. The
kinds are `openai_http` and `onnx_folder`.

`bert-base-uncased-vocab.txt` is the WordPiece vocabulary of BERT (Google, Apache-2.0), one token a
line, the line number being the token's id. all-MiniLM-L6-v2 and paraphrase-MiniLM-L3-v2 use it.
"""
