"""What callers feel of other work on the same server."""
