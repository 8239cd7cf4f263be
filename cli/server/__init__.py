"""`annheal up` and `annheal serve`: settings, data directory, and the roles put together."""
