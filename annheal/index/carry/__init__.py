"""A build that goes on with the largest graph: dead rows out, neighbours repaired, new rows in."""
