"""How searches take now against earlier ones of the same volume."""
