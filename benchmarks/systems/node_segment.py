"""One segment built by the compactor and searched by the node's own code, in this process."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from annheal.compactor.build.build import BuildOrder, build_segment
from annheal.compactor.fetch import Source
from annheal.index import LiveBitmap, VectorIndex, WalkCosts, set_search_threads
from annheal.model.collection import (
    Collection,
    CollectionSettings,
    Metric,
    ModelSpec,
    VectorStorage,
)
from annheal.model.filter import Filter
from annheal.model.records import ARROW_TYPES, arrow_schema
from annheal.model.search import SearchAnswer, SearchOptions
from annheal.model.topology.manifest import SegmentEntry, Tier
from annheal.segment import DeleteVector, Segment, SegmentRows, local_segment, write_segment
from annheal.segment.meta import INDEX_FILE
from annheal.shard_node.rows.view import SegmentView, ShardView
from annheal.shard_node.search.costs import MeasuredCosts
from annheal.shard_node.search.filter_cache import FilterCache
from annheal.shard_node.search.recall_curves import choose_ef
from annheal.shard_node.search.searcher import Searcher
from annheal.shard_node.search.threads import SearchThreads
from benchmarks.datasets.filter_cases import schema_of
from benchmarks.harness.dataset import Dataset


@dataclass(frozen=True, slots=True)
class NodeSegment:
    """A collection of one segment on one node."""

    collection: Collection
    view: ShardView
    searcher: Searcher
    index_file: Path
    build_s: float
    costs: WalkCosts

    @property
    def segment(self) -> Segment:
        """The segment."""
        return self.view.segments[0].segment

    @property
    def index(self) -> VectorIndex:
        """Its index."""
        return self.segment.index

    @property
    def rows(self) -> int:
        """Its rows."""
        return self.segment.rows

    def search(self, queries: npt.NDArray[np.float32], options: SearchOptions) -> SearchAnswer:
        """Search as the node's worker threads do; the filter is in canonical form."""
        return self.searcher.search([(0, self.view)], queries, options)

    def matching(self, filter: Filter | None) -> LiveBitmap | None:
        """Return the rows of a filter."""
        return None if filter is None else self.segment.matches(filter)

    def plain_ef(self, k: int) -> int:
        """Return the ef of searches without a filter."""
        objective = self.collection.settings.recall_objective
        return choose_ef(self.segment.recall_curve, k=k, objective=objective)


def build_node_segment(
    dataset: Dataset,
    columns: pa.RecordBatch,
    *,
    directory: Path,
    threads: int,
    storage: VectorStorage = VectorStorage.FLOAT32,
) -> NodeSegment:
    """Write the rows as a node flushes them, merge them as the compactor does, and open them."""
    collection = _collection(dataset, columns, storage)
    schema, model = collection.schema, collection.model
    attributes = pa.RecordBatch.from_arrays(
        [columns.column(field.name).cast(ARROW_TYPES[field.type]) for field in schema],
        schema=arrow_schema(schema),
    )
    rows = SegmentRows(
        ids=pa.array(dataset.ids, type=pa.string()),
        sequences=np.arange(dataset.rows, dtype=np.int64),
        vectors=dataset.vectors,
        attributes=attributes,
        payloads=pa.nulls(dataset.rows, pa.binary()),
    )
    flushed = write_segment(
        directory / "flushed",
        segment_id="flushed",
        tier=Tier.HOT,
        model=model,
        schema=schema,
        rows=rows,
        created_at_s=time.time(),
    )
    started_s = time.perf_counter()
    order = BuildOrder(
        segment_id="merged",
        tier=Tier.WARM,
        collection=collection,
        threads=threads,
        created_at_s=time.time(),
        on_progress=lambda share: None,
    )
    source = Source(_open(directory / "flushed", flushed), DeleteVector.empty(dataset.rows))
    merged = build_segment([source], order, directory=directory / "merged")
    assert merged is not None
    build_s = time.perf_counter() - started_s
    segment = _open(directory / "merged", merged)
    set_search_threads(threads)
    costs = MeasuredCosts()
    costs.measure(segment.index)
    # A node makes them in the background when the first search would profit.
    segment.index.make_shortlist()
    held = SegmentView(segment, DeleteVector.empty(segment.rows))
    return NodeSegment(
        collection,
        ShardView(segments=(held,)),
        Searcher(collection, FilterCache(), costs=costs, threads=SearchThreads(threads)),
        directory / "merged" / INDEX_FILE,
        build_s,
        costs.costs_of(segment.index),
    )


def _collection(dataset: Dataset, columns: pa.RecordBatch, storage: VectorStorage) -> Collection:
    return Collection(
        id="bench",
        name="bench",
        models=(ModelSpec("benchmark", dataset.dimension, Metric.COSINE),),
        schema=schema_of(columns),
        shard_count=1,
        settings=CollectionSettings(storage=storage),
    )


def _open(directory: Path, entry: SegmentEntry) -> Segment:
    return Segment.open(local_segment(directory, entry), entry)
