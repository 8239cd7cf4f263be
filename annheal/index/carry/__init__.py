"""Extends the graph of a segment: removes dead rows, repairs their neighbours, adds new rows."""
