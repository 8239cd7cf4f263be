"""Reads other than searches: records by id, counts, scans, and the ids that match a filter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from annheal.filters import evaluate
from annheal.model.filter import Filter
from annheal.model.limits import ANSWER_BYTES_MAX, SCAN_PAGE_BYTES
from annheal.model.records import IDS_ONLY, Projection, RecordSet, join_records
from annheal.model.values.answer_size import IDS_FIX
from annheal.model.write import ScanPage, ScanRequest
from annheal.runtime.stop import YieldPoint, no_yield_point
from annheal.shard_node.rows.growing import GrowingView
from annheal.shard_node.rows.view import SegmentView, ShardView
from annheal.shard_node.search.answer_bytes import check_answer, record_bytes
from annheal.shards.routing import hash_ids

IDS_AT_ONCE = 10_000
"""Ids converted to Python strings between two yield points, which takes a few milliseconds."""

Rows = npt.NDArray[np.int64]
Source = SegmentView | GrowingView


def live_mask(source: Source, filter: Filter | None) -> npt.NDArray[np.bool_]:
    """Return (rows,) bool, True for live rows that match `filter` (None: all live rows)."""
    if isinstance(source, GrowingView):
        live = source.live_mask()
        if filter is not None:
            live &= evaluate(filter, source.attributes(), row_count=source.rows)
        return live
    bitmap = source.deletes.live
    rows = source.segment.rows
    live = np.ones(rows, dtype=np.bool_) if bitmap is None else bitmap.mask().copy()
    if filter is not None:
        live &= source.segment.matches(filter).mask()
    return live


def matching_ids(
    view: ShardView, filter: Filter, *, yield_point: YieldPoint = no_yield_point
) -> list[str]:
    """Return the ids of all live records that match the validated `filter`."""
    ids: list[str] = []
    for source in _sources(view, yield_point):
        rows = np.flatnonzero(live_mask(source, filter))
        ids += _take_ids(source, rows, yield_point)
    return ids


def count_rows(
    view: ShardView, filter: Filter | None, *, yield_point: YieldPoint = no_yield_point
) -> int:
    """Return the number of live records that match `filter` (None: of all)."""
    if filter is None:
        return view.live_rows
    return sum(
        int(np.count_nonzero(live_mask(source, filter))) for source in _sources(view, yield_point)
    )


def get_records(
    view: ShardView,
    ids: tuple[str, ...],
    projection: Projection,
    *,
    yield_point: YieldPoint = no_yield_point,
    bytes_max: int = ANSWER_BYTES_MAX,
) -> RecordSet:
    """Return the live records among `ids`, in the order of `ids`; unknown ids are left out.

    Raises `InvalidArgument` with reason ANSWER_TOO_LARGE, before anything is copied, when the
    records are more than `bytes_max` bytes.
    """
    wanted = list(dict.fromkeys(ids))
    hashes = hash_ids(wanted)
    found: list[tuple[Source, Rows]] = []
    positions: list[Rows] = []
    for source in _sources(view, yield_point):
        if isinstance(source, GrowingView):
            rows = _find_growing(source, wanted)
        else:
            rows = source.segment.find(wanted, hashes)
        present = np.flatnonzero(rows >= 0)
        present = present[_is_live(source, rows[present])]
        if len(present):
            found.append((source, rows[present].astype(np.int64)))
            positions.append(present.astype(np.int64))
    check_answer(found, projection, field="ids", fix=IDS_FIX, bytes_max=bytes_max)
    return join_records([_take(source, rows, projection) for source, rows in found], positions)


def live_sequences(view: ShardView, ids: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return the sequence of the live record of each id, (n,) int64; -1 where there is none."""
    wanted, hashes = list(ids), hash_ids(ids)
    sequences = np.full(len(wanted), -1, dtype=np.int64)
    for source in _sources(view):
        if isinstance(source, GrowingView):
            rows, held = _find_growing(source, wanted), source.sequences
        else:
            rows, held = source.segment.find(wanted, hashes), source.segment.sequences
        present = np.flatnonzero(rows >= 0)
        present = present[_is_live(source, rows[present])]
        sequences[present] = held[rows[present]]
    return sequences


def scan_page(
    view: ShardView,
    request: ScanRequest,
    *,
    yield_point: YieldPoint = no_yield_point,
    bytes_max: int = SCAN_PAGE_BYTES,
) -> ScanPage:
    """Return the next `rows_max` live, matching records in the order of (hash, id).

    Fewer if they are more than `bytes_max` bytes, but at least one.
    """
    hashes: list[npt.NDArray[np.uint64]] = []
    refs: list[tuple[int, Rows]] = []
    sources = list(_sources(view))
    for position, source in enumerate(sources):
        yield_point()
        rows, source_hashes = _rows_after(source, request)
        refs.append((position, rows))
        hashes.append(source_hashes)
    return _cut_page(sources, refs, hashes, request, yield_point, bytes_max=bytes_max)


def _cut_page(
    sources: list[Source],
    refs: list[tuple[int, Rows]],
    hashes: list[npt.NDArray[np.uint64]],
    request: ScanRequest,
    yield_point: YieldPoint,
    *,
    bytes_max: int,
) -> ScanPage:
    entries = [
        (int(h), record_id, position, int(row))
        for (position, rows), source_hashes in zip(refs, hashes, strict=True)
        for h, record_id, row in zip(
            source_hashes.tolist(),
            _take_ids(sources[position], rows, yield_point),
            rows.tolist(),
            strict=True,
        )
    ]
    entries.sort()
    page = entries[: request.rows_max]
    picked = _by_source(page)
    sizes = np.zeros(len(page), dtype=np.int64)
    for number, (rows, where) in picked.items():
        sizes[where] = record_bytes(sources[number], rows, request.projection)
    fit = max(1, int(np.searchsorted(np.cumsum(sizes), bytes_max, side="right")))
    if fit < len(page):
        page = page[:fit]
        picked = _by_source(page)
    finished = len(entries) == len(page)
    taken: list[RecordSet] = []
    for number, (rows, _) in picked.items():
        yield_point()
        taken.append(_take(sources[number], rows, request.projection))
    positions = [where for _, where in picked.values()]
    last_hash, last_id = (page[-1][0], page[-1][1]) if page else (-1, "")
    return ScanPage(join_records(taken, positions), last_hash, last_id, finished)


def _by_source(page: list[tuple[int, str, int, int]]) -> dict[int, tuple[Rows, Rows]]:
    """Return, by number of the source, its rows on the page and their positions there."""
    numbers = np.array([entry[2] for entry in page], dtype=np.int64)
    rows = np.array([entry[3] for entry in page], dtype=np.int64)
    places = {number: np.flatnonzero(numbers == number) for number in np.unique(numbers).tolist()}
    return {number: (rows[where], where) for number, where in places.items()}


def _sources(view: ShardView, yield_point: YieldPoint = no_yield_point) -> Iterator[Source]:
    sources: tuple[Source, ...] = (*view.segments, *view.growing)
    for source in sources:
        yield_point()
        yield source


def _take(source: Source, rows: Rows, projection: Projection) -> RecordSet:
    holder = source.segment if isinstance(source, SegmentView) else source
    return holder.take(rows, projection)


def _take_ids(source: Source, rows: Rows, yield_point: YieldPoint) -> list[str]:
    ids: list[str] = []
    for start in range(0, len(rows), IDS_AT_ONCE):
        yield_point()
        ids += _take(source, rows[start : start + IDS_AT_ONCE], IDS_ONLY).ids
    return ids


def _is_live(source: Source, rows: Rows) -> npt.NDArray[np.bool_]:
    if isinstance(source, SegmentView):
        return ~source.deletes.is_dead(rows)
    alive = np.ones(len(rows), dtype=np.bool_)
    return alive if source.dead is None else ~source.dead[rows]


def _rows_after(source: Source, request: ScanRequest) -> tuple[Rows, npt.NDArray[np.uint64]]:
    """Return rows and hashes of one source that may be on the page, by ascending hash.

    They are the first `rows_max + 1` after the last record of the page before, and all rows whose
    hash equals that of the last of these. One more than `rows_max` shows that a page follows.
    """
    mask = live_mask(source, request.filter)
    rows: npt.NDArray[Any]
    if isinstance(source, SegmentView):
        rows, hashes = source.segment.hash_order, source.segment.hashes
        start = source.segment.position_after(request.after_hash, request.after_id)
    else:
        rows, hashes, start = _growing_order(source, request)
    keep = np.flatnonzero(mask[rows[start:]]) + start
    if len(keep) > request.rows_max + 1:
        end = int(np.searchsorted(hashes, hashes[keep[request.rows_max]], side="right"))
        keep = keep[keep < end]
    return rows[keep].astype(np.int64), hashes[keep]


def _growing_order(
    growing: GrowingView, request: ScanRequest
) -> tuple[Rows, npt.NDArray[np.uint64], int]:
    """Return the rows in the order of hashes, the hashes, and where the page begins in them."""
    unordered = hash_ids(growing.ids[: growing.rows])
    rows = np.argsort(unordered, kind="stable")
    hashes = unordered[rows]
    if request.after_hash < 0:
        return rows, hashes, 0
    after = np.uint64(request.after_hash)
    start = int(np.searchsorted(hashes, after, side="left"))
    end = int(np.searchsorted(hashes, after, side="right"))
    # Several ids may have the hash of the last record; those up to it were on earlier pages.
    tied = sorted(rows[start:end].tolist(), key=lambda row: growing.ids[row])
    rows[start:end] = tied
    while start < end and growing.ids[int(rows[start])] <= request.after_id:
        start += 1
    return rows, hashes, start


def _find_growing(growing: GrowingView, ids: list[str]) -> Rows:
    """Return the newest row of each id in the view, -1 where there is none."""
    newest = growing.newest
    rows = np.fromiter((newest.get(i, -1) for i in ids), dtype=np.int64, count=len(ids))
    later = np.flatnonzero(rows >= growing.rows)
    if len(later):
        # Written again after this view was taken: the newest rows in the view are older ones.
        in_view = {record_id: row for row, record_id in enumerate(growing.ids[: growing.rows])}
        rows[later] = [in_view.get(ids[position], -1) for position in later.tolist()]
    return rows
