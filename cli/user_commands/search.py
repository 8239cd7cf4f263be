"""`annheal search`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt
import typer
from rich.console import Group, RenderableType

from annheal.cli.output import table, to_json
from annheal.cli.sources.matrix import NPY_ERRORS, open_matrix
from annheal.cli.state import state_of
from annheal.cli.user_commands.records import Collection, Filter, Include, as_object
from annheal.client import Hit, SearchBatch, SearchResult
from annheal.errors import InvalidArgument
from annheal.model.search import SegmentExplain
from annheal.model.values.unfit import UnfitValue
from annheal.model.values.vectors import vector_matrix


def search(
    context: typer.Context,
    collection: Collection,
    text: Annotated[
        str | None,
        typer.Option("--text", "-t", help="Search for this text: embedded by the server, or here."),
    ] = None,
    id: Annotated[
        list[str] | None, typer.Option("--id", help="The vector of a stored record; repeatable.")
    ] = None,
    vector_file: Annotated[
        Path | None,
        typer.Option(
            "--vector-file", help="Queries: .npy, .fvecs, .bvecs, .hdf5, or JSON (- is stdin)."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The model of the vectors in the file, or to embed --text.")
    ] = None,
    k: Annotated[int, typer.Option("-k", help="Hits wanted.")] = 10,
    filter: Filter = None,
    include: Include = None,
    exact: Annotated[bool, typer.Option("--exact", help="Compare every record.")] = False,
    ef: Annotated[int | None, typer.Option("--ef", help="Beam width of graph walks.")] = None,
    recall: Annotated[
        float | None, typer.Option("--recall-objective", help="Instead of the collection's.")
    ] = None,
    tag: Annotated[
        str | None,
        typer.Option("--tag", help="What you call this kind of query; recall is reported by tag."),
    ] = None,
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Answer although shards are missing.")
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show the plan of each segment.")
    ] = False,
) -> None:
    """Find the nearest records of a text, of stored records, or of the vectors in a file."""
    state = state_of(context)
    require_one_query(text, id or None, vector_file)
    vectors = None if vector_file is None else read_queries(vector_file)
    with state.client() as client:
        found = client.search_batch(
            collection,
            vectors,
            ids=id or None,
            texts=None if text is None else [text],
            model=model,
            k=k,
            filter=filter,
            include=include,
            exact=exact,
            ef=ef,
            recall_objective=recall,
            tag=tag,
            allow_partial=allow_partial,
            explain=explain,
        )
    state.output.show(_as_document(found, explain=explain), lambda _: _render(found, id))
    if found.partial:
        missing = ", ".join(map(str, found.missing_shards))
        state.output.note(f"partial: shards {missing} did not answer")
    if found.below_objective:
        state.output.note(
            "below the recall objective: better records may be missing; `annheal recall"
            f" {collection}` says why, --exact compares every record"
        )


def require_one_query(text: object, id: object, vector_file: object) -> None:
    """Raise `InvalidArgument` unless exactly one of the ways to give a query is used."""
    given = sum(one is not None for one in (text, id, vector_file))
    if given != 1:
        raise InvalidArgument.of(
            "query",
            f"{given or 'none'} given; say what to search for with exactly one of"
            " --id ID (like a stored record), --text TEXT and --vector-file FILE",
        )


def read_queries(path: Path) -> npt.NDArray[Any]:
    """Return the queries of a file as (n, d); one vector is one query."""
    if str(path) != "-" and not path.is_file():
        raise InvalidArgument.of("--vector-file", f"{path} does not exist or is no file")
    if path.suffix.lower() == ".npy":
        try:
            array: npt.NDArray[Any] = np.load(path, allow_pickle=False)
        except NPY_ERRORS as error:
            raise InvalidArgument.of("--vector-file", f"{path}: {error}") from error
        return np.atleast_2d(array)
    if path.suffix.lower() in (".fvecs", ".bvecs", ".hdf5", ".h5"):
        try:
            matrix, _ = open_matrix(path, dataset="test")
        except InvalidArgument as error:
            text = error.message.removeprefix("FILE: ")
            raise InvalidArgument.of("--vector-file", text) from error
        return np.asarray(matrix[0 : matrix.shape[0]])
    try:
        content = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
        given = msgspec.json.decode(content)
        several = isinstance(given, list) and bool(given) and isinstance(given[0], list)
        return vector_matrix(given if several else [given])
    except OSError as error:
        raise InvalidArgument.of("--vector-file", f"{path}: {error.strerror}") from error
    except (msgspec.DecodeError, UnfitValue) as error:
        row = getattr(error, "row", None)
        query = "" if row is None else f", query {row},"
        raise InvalidArgument.of(
            "--vector-file", f"{path}{query} is no JSON list of numbers: {error}"
        ) from error


def _as_document(found: SearchBatch, *, explain: bool) -> dict[str, Any]:
    document: dict[str, Any] = {
        "queries": [[_as_hit(hit) for hit in result] for result in found],
        "partial": found.partial,
        "below_objective": found.below_objective,
    }
    if found.partial:
        document["missing_shards"] = found.missing_shards
    if explain:
        document["explain"] = found.explain
    return document


def _as_hit(hit: Hit) -> dict[str, Any]:
    shown = as_object(hit)
    return {"id": shown.pop("id"), "score": hit.score, **shown}


def _render(found: SearchBatch, ids: list[str] | None) -> RenderableType:
    parts: list[RenderableType] = []
    for number, result in enumerate(found):
        title = None
        if len(found) > 1:
            title = ids[number] if ids else f"query {number}"
        parts.append(_render_hits(result, title=title))
    if found.explain:
        parts += ["", _render_explain(found.explain)]
    return Group(*parts)


def _render_hits(result: SearchResult, *, title: str | None) -> RenderableType:
    hits = list(result)
    names = list(result.attributes.schema.names) if result.attributes is not None else []
    columns = [">RANK", ">SCORE", "ID", *(name.upper() for name in names)]
    with_payload = any(hit.payload is not None for hit in hits)
    if with_payload:
        columns.append("PAYLOAD")
    if result.vectors is not None:
        columns.append("VECTOR")
    if any(hit.version is not None for hit in hits):
        columns.append("VERSION")
    rows = []
    for rank, hit in enumerate(hits, start=1):
        attributes = hit.attributes or {}
        row: list[object] = [rank, f"{hit.score:.4f}", hit.id]
        row += [_plain(attributes.get(name)) for name in names]
        if with_payload:
            row.append(None if hit.payload is None else to_json(hit.payload))
        if hit.vector is not None:
            row.append(to_json([round(float(value), 4) for value in hit.vector[:4]]))
        if hit.version is not None:
            row.append(str(hit.version))
        rows.append(row)
    return table(columns, rows, title=title)


def _plain(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _render_explain(entries: tuple[SegmentExplain, ...]) -> RenderableType:
    return table(
        [">SHARD", "SEGMENT", "PLAN", ">ROWS", ">LIVE", ">MATCHES", ">EF", ">VISITED", ">MS"],
        (
            (
                e.shard,
                e.segment_id,
                e.plan,
                e.rows,
                e.live_rows,
                e.matches,
                e.ef or None,
                e.visited,
                f"{e.duration_s * 1e3:.2f}",
            )
            for e in entries
        ),
    )
