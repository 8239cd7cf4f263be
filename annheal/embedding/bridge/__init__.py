"""Bringing the scores of two embedding models together while a collection changes its model.

During a migration each record is answered from exactly one model: the new one where the record has
a new vector, the old one otherwise. A query therefore gives two lists whose scores cannot be
compared. Records that have both vectors, called pairs, are what a `Bridge` is learned from.

`pairs` checks and prepares them, `maps` predicts new vectors from old ones, `estimates` turns a
prediction into scores of old records on the scale of the new model, `fusion` has the ways that need
no map, `judging` measures a way on held-out pairs, `choosing.choose` decides, `bridge` applies what
was decided to a query, and `codec` stores it. Only numpy; nothing here reads a clock or a file.

ADR 49 has the measurements behind the constants.
"""
