"""The rows of a segment that have a vector of a further model, searched by that model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from annheal.errors import DataCorruption
from annheal.index import LiveBitmap, load_mapped
from annheal.model.filter import Filter
from annheal.model.records import Float32Matrix, Projection, RecordSet
from annheal.segment.lookup import IdLookup
from annheal.segment.meta import INDEX_FILE, VECTORS_FILE
from annheal.segment.parts.files import PartFiles
from annheal.segment.parts.meta import PART_ROWS_FILE
from annheal.segment.segment import Segment
from annheal.shards.routing import hash_ids


class PartSegment(Segment):
    """A vector part, read as a segment of its own.

    Its rows are numbered in the order of the part's vectors; `base_rows` gives the row of the
    segment for each of them. Its `id` is that of the part, so what is known about one graph is
    never taken for another's. Columns are those of the segment, and are read through `base_rows`.

    Attributes:
        base: the segment.
        base_rows: (rows,) int64 rows of it, read-only.
        skipped: live rows of the segment that a backfill could not give a vector, by reason.
    """

    __slots__ = ("__dict__", "base", "base_rows", "skipped")

    def __init__(self, base: Segment, files: PartFiles) -> None:
        """Map verified files. Blocks for a moment.

        Raises `DataCorruption` when they do not agree with each other or the segment.
        """
        meta, paths, entry = files.meta, files.paths, files.entry
        index = load_mapped(
            paths[INDEX_FILE],
            metric=meta.model.metric,
            raw=paths.get(VECTORS_FILE),
            graph_size=meta.graph_rows or None,
        )
        rows = (
            np.load(paths[PART_ROWS_FILE], mmap_mode="r")
            if PART_ROWS_FILE in paths
            else np.arange(base.rows, dtype=np.int32)
        )
        found = (index.rows, index.dimension, index.kind, index.storage, rows.shape, base.rows)
        expected = (
            meta.rows,
            meta.model.dimension,
            meta.index_kind,
            meta.build.storage,
            (meta.rows,),
            meta.segment_rows,
        )
        if found != expected or int(rows.min()) < 0 or int(rows.max()) >= base.rows:
            what = "(vectors, dimension, kind, storage, rows, rows of the segment)"
            raise DataCorruption(
                f"vector part {entry.part_id} of segment {base.id} has {what} {found}, not"
                f" {expected}",
                metadata={"segment": base.id, "part": entry.part_id, "file": INDEX_FILE},
            )
        super().__init__(
            entry=replace(
                base.entry,
                segment_id=entry.part_id,
                model=entry.model,
                index_kind=entry.index_kind,
                rows=meta.rows,
                size_bytes=entry.size_bytes,
                meta_checksum=entry.meta_checksum,
                lacking=0,
                parts=(),
            ),
            meta=replace(
                base.meta,
                segment_id=entry.part_id,
                model=meta.model,
                rows=meta.rows,
                index_kind=meta.index_kind,
                build=meta.build,
                graph_rows=meta.graph_rows,
            ),
            index=index,
            columns=base.columns,
            lookup=base.lookup,
            indexed=None,
        )
        self.base = base
        self.base_rows: npt.NDArray[np.int64] = rows.astype(np.int64)
        self.base_rows.flags.writeable = False
        self.skipped = dict(meta.skipped)

    @cached_property
    def _places(self) -> npt.NDArray[np.int64]:
        """(rows of the segment,) int64: the row here, -1 for a row without a vector."""
        places = np.full(self.base.rows, -1, dtype=np.int64)
        places[self.base_rows] = np.arange(self.rows)
        return places

    @cached_property
    def _own_lookup(self) -> IdLookup:
        ids = self.ids
        return IdLookup.build(ids, hashes=hash_ids(ids))

    def rebased(self, base: Segment) -> PartSegment:
        """Return the part of `base`, which has the same rows as the present one."""
        found = copy.copy(self)
        found.base = base
        return found

    @property
    def graph_ids(self) -> tuple[str, ...]:
        """The id of the segment and those of all its parts."""
        return self.base.graph_ids

    def _arrow_rows(self) -> pa.Int64Array:
        return pa.array(self.base_rows, type=pa.int64())

    @property
    def ids(self) -> pa.StringArray:
        """The id of every row; copied."""
        return self.base.ids.take(self._arrow_rows())

    @property
    def sequences(self) -> npt.NDArray[np.int64]:
        """The sequence of every row, (rows,) int64; copied."""
        return self.base.sequences[self.base_rows]

    @property
    def attributes(self) -> pa.RecordBatch:
        """The attribute columns; copied."""
        attributes = self.base.attributes
        return attributes.take(self._arrow_rows()) if attributes.num_columns else attributes

    @property
    def payloads(self) -> pa.LargeBinaryArray:
        """The payload of every row; copied."""
        return self.base.payloads.take(self._arrow_rows())

    @property
    def hashes(self) -> npt.NDArray[np.uint64]:
        """The id hashes in ascending order, (rows,) uint64."""
        return self._own_lookup.hashes

    @property
    def hash_order(self) -> npt.NDArray[np.int32]:
        """The rows in the order of (id hash, id in UTF-8), (rows,) int32."""
        return self._own_lookup.order

    def matches(self, filter: Filter) -> LiveBitmap:
        """Return the rows that match; see `Segment.matches`."""
        return self.of_base(self.base.matches(filter))

    def of_base(self, rows: LiveBitmap) -> LiveBitmap:
        """Return those rows of the segment that have a vector, by their numbers here."""
        return LiveBitmap.from_mask(rows.contains(self.base_rows))

    def ids_at(self, rows: npt.NDArray[np.int64]) -> list[str]:
        """Return the ids of `rows`."""
        return self.base.ids_at(self.base_rows[rows])

    def find(self, ids: Sequence[str], hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """Return the row of each id, -1 where there is none; see `Segment.find`."""
        found = self.base.find(ids, hashes)
        places = self._places[found]
        places[found < 0] = -1
        return places

    def position_after(self, last_hash: int, last_id: str) -> int:
        """Return the first position in `hash_order` after (last_hash, last_id)."""
        return self._own_lookup.position_after(last_hash, last_id, ids=self.ids)

    def take(self, rows: npt.NDArray[np.int64], projection: Projection) -> RecordSet:
        """Return `rows` in the given order; see `Segment.take`."""
        if not projection.vector or projection.models:
            return self.base.take(self.base_rows[rows], projection)
        records = self.base.take(self.base_rows[rows], replace(projection, vector=False))
        return replace(records, vectors=self.index.reconstruct(rows))

    def stored(self, rows: npt.NDArray[np.int64]) -> tuple[Segment, npt.NDArray[np.int64]]:
        """Return the segment whose columns hold `rows`, and their numbers there."""
        return self.base, self.base_rows[rows]

    def vectors_at(self, base_rows: npt.NDArray[np.int64]) -> Float32Matrix:
        """Return the vectors of rows of the segment, (n, d); NaN for rows without one."""
        places = self._places[base_rows]
        found = np.full((len(places), self.meta.model.dimension), np.nan, dtype=np.float32)
        present = places >= 0
        found[present] = self.index.reconstruct(places[present])
        return found
