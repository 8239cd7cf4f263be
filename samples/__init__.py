"""Real packages with their embeddings, and a demonstration on them."""
