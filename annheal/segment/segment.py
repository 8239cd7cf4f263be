"""A segment opened for reading: everything is mapped, nothing is parsed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from annheal.errors import DataCorruption
from annheal.filters import IndexedColumns, evaluate
from annheal.index import LiveBitmap, VectorIndex, load_mapped
from annheal.model.collection import VectorStorage
from annheal.model.filter import Filter
from annheal.model.records import Float32Matrix, ModelVectors, Projection, RecordSet
from annheal.model.topology.manifest import IndexKind, SegmentEntry
from annheal.segment.fields import open_fields
from annheal.segment.files import SegmentFiles
from annheal.segment.lookup import IdLookup, open_lookup
from annheal.segment.meta import (
    FIELDS_FILE,
    HASHES_FILE,
    INDEX_FILE,
    LACKING_FILE,
    ORDER_FILE,
    ROWS_FILE,
    VECTORS_FILE,
    RecallPoint,
    SegmentMeta,
)
from annheal.segment.rows import MappedRows, decoded, open_rows
from annheal.segment.texts import texts_at

if TYPE_CHECKING:
    from annheal.segment.parts.segment import PartSegment

_NO_ROWS = np.empty(0, dtype=np.int64)


class Segment:
    """An immutable segment; every method may be called from any thread.

    Rows are numbered from zero, the same in all files. The files stay mapped while the segment,
    or any array that came from it, is referenced; they may be deleted meanwhile.

    Attributes:
        entry: as the manifest names it.
        meta: what `segment.json` says.
        index: answers searches by row number.
        lacking_rows: rows without a vector of the segment's model, (n,) int64, mostly none; the
            index has zeros for them.
        parts: the vectors of other models, by name.
    """

    __slots__ = (
        "columns",
        "entry",
        "index",
        "indexed",
        "lacking_rows",
        "lookup",
        "meta",
        "parts",
    )

    def __init__(
        self,
        *,
        entry: SegmentEntry,
        meta: SegmentMeta,
        index: VectorIndex,
        columns: MappedRows,
        lookup: IdLookup,
        indexed: IndexedColumns | None,
        lacking_rows: npt.NDArray[np.int64] = _NO_ROWS,
    ) -> None:
        self.entry = entry
        self.meta = meta
        self.index = index
        self.columns = columns
        self.lookup = lookup
        self.indexed = indexed
        self.lacking_rows = lacking_rows
        self.parts: Mapping[str, PartSegment] = MappingProxyType({})

    @classmethod
    def open(cls, files: SegmentFiles, entry: SegmentEntry) -> Segment:
        """Map verified files and check that they agree with each other. Blocks for a moment.

        Raises `DataCorruption` when they do not: their checksums hold, so they were written so.
        """
        meta, paths = files.meta, files.paths
        try:
            lookup = open_lookup(paths[HASHES_FILE], paths[ORDER_FILE], rows=meta.rows)
        except ValueError as error:
            raise _unreadable(files, HASHES_FILE, error) from error
        try:
            columns = open_rows(paths[ROWS_FILE], schema=meta.schema, rows=meta.rows)
        except ValueError as error:  # pa.ArrowInvalid is one too
            raise _unreadable(files, ROWS_FILE, error) from error
        indexed = None
        if FIELDS_FILE in paths:
            try:
                postings = open_fields(paths[FIELDS_FILE], schema=meta.schema, rows=meta.rows)
            except ValueError as error:
                raise _unreadable(files, FIELDS_FILE, error) from error
            indexed = IndexedColumns(columns.attributes, postings, row_count=meta.rows)
        index = load_mapped(
            paths[INDEX_FILE],
            metric=meta.model.metric,
            raw=paths.get(VECTORS_FILE),
            graph_size=meta.graph_rows or None,
        )
        found = (index.rows, index.dimension, index.kind, index.storage)
        expected = (meta.rows, meta.model.dimension, meta.index_kind, meta.build.storage)
        if found != expected:
            what = "(rows, dimension, kind, storage)"
            raise _unreadable(files, INDEX_FILE, f"it has {what} {found}, not {expected}")
        lacking_rows = _NO_ROWS
        if LACKING_FILE in paths:
            lacking_rows = np.load(paths[LACKING_FILE]).astype(np.int64)
            if not len(lacking_rows) or lacking_rows.max() >= meta.rows or lacking_rows.min() < 0:
                raise _unreadable(files, LACKING_FILE, "its rows are not those of the segment")
        return cls(
            entry=entry,
            meta=meta,
            index=index,
            columns=columns,
            lookup=lookup,
            indexed=indexed,
            lacking_rows=lacking_rows,
        )

    def with_parts(self, entry: SegmentEntry, parts: Mapping[str, PartSegment]) -> Segment:
        """Return the segment with other `parts`, which are those that `entry` names."""
        segment = Segment(
            entry=entry,
            meta=self.meta,
            index=self.index,
            columns=self.columns,
            lookup=self.lookup,
            indexed=self.indexed,
            lacking_rows=self.lacking_rows,
        )
        # What a part reads of its segment, vectors of other models too, is that of this one.
        segment.parts = {model: part.rebased(segment) for model, part in parts.items()}
        return segment

    @property
    def id(self) -> str:
        """The segment id."""
        return self.entry.segment_id

    @property
    def graph_ids(self) -> tuple[str, ...]:
        """The id of the segment and those of its parts: each has a graph of its own."""
        return (self.id, *(part.id for part in self.parts.values()))

    @property
    def rows(self) -> int:
        """Rows, dead ones included."""
        return self.meta.rows

    @property
    def kind(self) -> IndexKind:
        """Whether searches walk a graph or compare everything."""
        return self.meta.index_kind

    @property
    def storage(self) -> VectorStorage:
        """What walks compare; exact comparison and reads see float32 in any case."""
        return self.meta.build.storage

    @property
    def recall_curve(self) -> tuple[RecallPoint, ...]:
        """Recall against ef, as measured when the graph was built; empty for a flat index."""
        return self.meta.build.recall_curve

    @property
    def ids(self) -> pa.StringArray:
        """The id of every row."""
        return self.columns.ids

    @property
    def sequences(self) -> npt.NDArray[np.int64]:
        """The sequence of every row, (rows,) int64, read-only."""
        return self.columns.sequences

    @property
    def attributes(self) -> pa.RecordBatch:
        """The attribute columns in schema order; keywords are dictionary-encoded.

        Without declared attributes it has no columns and so no length: use `rows`.
        """
        return self.columns.attributes

    @property
    def payloads(self) -> pa.LargeBinaryArray:
        """The payload of every row, UTF-8 JSON or null."""
        return self.columns.payloads

    @property
    def vectors(self) -> Float32Matrix:
        """The vectors, (rows, d) float32, read-only, perhaps unaligned; see `VectorIndex`."""
        return self.index.vectors

    @property
    def hashes(self) -> npt.NDArray[np.uint64]:
        """The id hashes in ascending order, (rows,) uint64."""
        return self.lookup.hashes

    @property
    def hash_order(self) -> npt.NDArray[np.int32]:
        """The rows in the order of (id hash, id in UTF-8), (rows,) int32: the order of scans."""
        return self.lookup.order

    def matches(self, filter: Filter) -> LiveBitmap:
        """Return the rows that match a filter from `validate_filter`, dead ones included.

        By the field indexes; a segment of format 1 has none and compares every row. Raises
        `InvariantViolation` when the filter was validated against another schema.
        """
        if self.indexed is not None:
            packed, count = self.indexed.matches(filter)
            return LiveBitmap(packed, rows=self.rows, count=count)
        return LiveBitmap.from_mask(evaluate(filter, self.attributes, row_count=self.rows))

    def ids_at(self, rows: npt.NDArray[np.int64]) -> list[str]:
        """Return the ids of `rows`."""
        return texts_at(self.columns.ids, rows)

    def find(self, ids: Sequence[str], hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """Return the row of each id, (n,) int64, -1 where the segment has none.

        `hashes` (n,) are `annheal.shards.routing.hash_ids(ids)`. Dead rows are found too.
        """
        return self.lookup.find(ids, hashes=hashes, ids=self.columns.ids)

    def position_after(self, last_hash: int, last_id: str) -> int:
        """Return the first position in `hash_order` after (last_hash, last_id); 0 for hash -1."""
        return self.lookup.position_after(last_hash, last_id, ids=self.columns.ids)

    def take(self, rows: npt.NDArray[np.int64], projection: Projection) -> RecordSet:
        """Return `rows` in the given order, with what `projection` asks for.

        Attributes come as plain columns (`annheal.model.records.arrow_schema`), in the order in
        which the projection names them; a name that the segment does not have is left out.
        """
        attributes = None
        if projection.attributes != ():
            attributes = self._take_attributes(_arrow(rows), projection.attributes)
        payloads = None
        if projection.payload:
            taken = self.columns.payloads.take(_arrow(rows))
            payloads = cast(pa.BinaryArray, taken.cast(pa.binary()))
        ids = texts_at(self.columns.ids, rows)
        versions = self.sequences[rows] if projection.version else None
        records = RecordSet(ids, attributes, payloads, versions=versions)
        return self._with_vectors(records, rows, projection) if projection.vector else records

    def vectors_of(
        self, model: str, rows: npt.NDArray[np.int64], *, dimension: int
    ) -> Float32Matrix:
        """Return the vectors of a model for `rows`, (n, dimension); NaN for rows without one."""
        part = self.parts.get(model)
        if part is not None:
            return part.vectors_at(rows)
        if model != self.meta.model.name:
            return np.full((len(rows), dimension), np.nan, dtype=np.float32)
        vectors = self.index.reconstruct(rows)
        if len(self.lacking_rows):
            vectors[np.isin(rows, self.lacking_rows)] = np.nan
        return vectors

    def stored(self, rows: npt.NDArray[np.int64]) -> tuple[Segment, npt.NDArray[np.int64]]:
        """Return the segment whose columns hold `rows`, and their numbers there."""
        return self, rows

    def _with_vectors(
        self, records: RecordSet, rows: npt.NDArray[np.int64], projection: Projection
    ) -> RecordSet:
        own = self.meta.model
        models = projection.models or (own.name,)
        dimensions = projection.dimensions or (own.dimension,)
        first, *further = [
            ModelVectors(model, self.vectors_of(model, rows, dimension=dimension))
            for model, dimension in zip(models, dimensions, strict=True)
        ]
        model = first.model if projection.models else ""
        return replace(records, vectors=first.vectors, model=model, further=tuple(further))

    def _take_attributes(
        self, wanted: pa.Int64Array, names: tuple[str, ...] | None
    ) -> pa.RecordBatch:
        attributes = self.columns.attributes
        if names is not None:
            present = set(attributes.schema.names)
            attributes = attributes.select([name for name in names if name in present])
        if not attributes.num_columns:
            return attributes
        return decoded(attributes.take(wanted))


def _arrow(rows: npt.NDArray[np.int64]) -> pa.Int64Array:
    return pa.array(rows, type=pa.int64())


def _unreadable(files: SegmentFiles, file: str, why: object) -> DataCorruption:
    path: Path = files.paths[file]
    return DataCorruption(
        f"{file} of segment {files.entry.segment_id} cannot be used: {why}",
        metadata={"segment": files.entry.segment_id, "file": file, "path": str(path)},
    )
