"""`annheal explain`: how each segment answers one query, and why in that way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Group, RenderableType
from rich.text import Text

from annheal.cli.output import facts, share, table
from annheal.cli.state import state_of
from annheal.cli.user_commands.records import Collection, Filter
from annheal.cli.user_commands.search import read_queries, require_one_query
from annheal.client import SearchBatch
from annheal.errors import InvalidArgument
from annheal.model.measures.recall import band_of
from annheal.model.search import SegmentExplain


def explain(
    context: typer.Context,
    collection: Collection,
    id: Annotated[str | None, typer.Option("--id", help="The vector of a stored record.")] = None,
    vector_file: Annotated[
        Path | None,
        typer.Option("--vector-file", help="One query: .npy, .fvecs, or a JSON list (- is stdin)."),
    ] = None,
    text: Annotated[
        str | None, typer.Option("--text", "-t", help="Embed this text (extra `text`).")
    ] = None,
    k: Annotated[int, typer.Option("-k", help="Hits wanted.")] = 10,
    filter: Filter = None,
    exact: Annotated[bool, typer.Option("--exact", help="Compare every record.")] = False,
    ef: Annotated[int | None, typer.Option("--ef", help="Beam width of graph walks.")] = None,
    recall: Annotated[
        float | None, typer.Option("--recall-objective", help="Instead of the collection's.")
    ] = None,
) -> None:
    """Search once and show the plan of each segment, and why it was chosen."""
    state = state_of(context)
    require_one_query(text, id, vector_file)
    vectors = None if vector_file is None else read_queries(vector_file)
    if vectors is not None and len(vectors) != 1:
        raise InvalidArgument.of("--vector-file", f"holds {len(vectors)} queries; give one")
    with state.client() as client:
        found = client.search_batch(
            collection,
            vectors,
            ids=None if id is None else [id],
            texts=None if text is None else [text],
            k=k,
            filter=filter,
            exact=exact,
            ef=ef,
            recall_objective=recall,
            explain=True,
        )
    filtered = filter is not None
    document = _as_document(found, filtered=filtered)
    state.output.show(document, lambda _: _render(found, filtered=filtered))


def why(entry: SegmentExplain) -> str:
    """Return one sentence that says why a segment was answered as it was."""
    known = _REASONS.get(entry.plan)
    if known is None:
        return f"by the plan {entry.plan!r} of a newer server"
    return known(entry) + (_WITHOUT_KERNELS if entry.without_kernels else "")


_WITHOUT_KERNELS = (
    "; filtered walks were not possible, because the node has not loaded its compiled kernels yet"
)


def _selectivity(entry: SegmentExplain) -> str:
    return share(entry.matches, entry.live_rows) or "0 %"


def _why_scan(entry: SegmentExplain) -> str:
    if entry.segment_id.startswith("growing"):
        return "rows in memory have no graph yet: all of them are compared"
    return (
        "all rows are compared: the search is exact, or the segment is too small or too new for a"
        " graph, or no graph of it met the recall objective"
    )


def _why_graph(entry: SegmentExplain) -> str:
    return f"all live rows match: a walk of the graph with ef {entry.ef} finds the nearest"


def _why_walk(entry: SegmentExplain) -> str:
    return (
        f"{_selectivity(entry)} of the live rows match: a walk with ef {entry.ef} that returns only"
        " these is cheaper than comparing each of them"
    )


_REASONS: dict[str, Callable[[SegmentExplain], str]] = {
    "skip": lambda _: "no live row matches",
    "scan": _why_scan,
    "rows": lambda entry: (
        f"only {entry.matches:,} rows match: comparing each is cheaper than walking the graph"
    ),
    "shortlist": lambda entry: (
        f"{entry.matches:,} rows match: their 8-bit codes are compared, and the vectors of the best"
    ),
    "graph": _why_graph,
    "selector": _why_walk,
    "in-graph": lambda entry: (
        f"a walk with ef {entry.ef} that passes through other rows and compares matching rows only"
    ),
    "walk": _why_walk,
}


def _totals(found: SearchBatch, *, filtered: bool) -> dict[str, Any]:
    matches = sum(entry.matches for entry in found.explain)
    live_rows = sum(entry.live_rows for entry in found.explain)
    return {
        "hits": sum(len(result) for result in found),
        "segments": len(found.explain),
        "live_rows": live_rows,
        "matches": matches,
        "selectivity": matches / live_rows if live_rows else None,
        "band": band_of(matches, live_rows, filtered=filtered).value,
        "visited": sum(entry.visited for entry in found.explain),
        "duration_s": sum(entry.duration_s for entry in found.explain),
    }


def _as_document(found: SearchBatch, *, filtered: bool) -> dict[str, Any]:
    return {
        **_totals(found, filtered=filtered),
        "segments": [
            {
                **msgspec.to_builtins(entry),
                "selectivity": entry.matches / entry.live_rows if entry.live_rows else None,
                "why": why(entry),
            }
            for entry in found.explain
        ],
    }


def _render(found: SearchBatch, *, filtered: bool) -> RenderableType:
    totals = _totals(found, filtered=filtered)
    lines = facts(
        [
            ("hits", totals["hits"]),
            ("live rows", totals["live_rows"]),
            ("that match", f"{totals['matches']:,} (band {totals['band']})"),
            ("vectors compared", totals["visited"] or None),
            ("time in segments", f"{totals['duration_s'] * 1e3:.2f} ms"),
        ]
    )
    segments = table(
        [
            ">SHARD", "SEGMENT", "PLAN", ">LIVE", ">MATCHES", ">SELECTIVITY", ">EF", ">VISITED",
            ">MS",
        ],
        (
            (
                entry.shard,
                entry.segment_id,
                entry.plan,
                entry.live_rows,
                entry.matches,
                share(entry.matches, entry.live_rows),
                entry.ef or None,
                entry.visited or None,
                f"{entry.duration_s * 1e3:.2f}",
            )
            for entry in found.explain
        ),
    )  # fmt: skip
    reasons = [Text(f"{entry.shard}/{entry.segment_id}: {why(entry)}") for entry in found.explain]
    return Group(lines, "", segments, "", *reasons)
