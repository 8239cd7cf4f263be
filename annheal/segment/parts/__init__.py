"""Vector parts: the vectors of one further model for rows of a segment (ADR 48)."""
