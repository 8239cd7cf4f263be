"""What callers send, converted exactly or refused: one code for the SDK, the CLI and the server.

============  ==========================================================================
`attributes`  `attribute_column(values, type)`: one attribute of n rows as Arrow
`moments`     the one rule of time, and the range that every client can read back
`scalars`     one value of one type; `columns` and the filters use it
`vectors`     `vector_matrix(vectors)`: n vectors as (n, d)
`ids`         `id_texts(ids)`
`payloads`    `payload_column(values)`: JSON that reads back as what was given
`reading`     stored values as Python values, what older versions let in included
============  ==========================================================================

All raise `UnfitValue` with the row (counted from 0 within what was given) and the fix. Who calls
them knows the caller's words for that row, and makes the `InvalidArgument` of it:
`error.refusal("attributes.year")` gives `attributes.year[3]: ...`.

`answer_size` has the limit on the bytes of an answer, and raises `InvalidArgument` itself.
"""
