"""Collections, and what happens to them while they live."""
