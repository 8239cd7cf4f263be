"""Which segments are rewritten, as pure rules, and the book of tasks."""
