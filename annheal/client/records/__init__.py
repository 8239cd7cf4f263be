"""Calls that write and read records by id."""
