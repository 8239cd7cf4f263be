"""Annheal: the shared library of its services, and the client SDK."""
