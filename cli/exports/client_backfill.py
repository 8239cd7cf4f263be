"""`annheal migrate export` and `import`: a backfill by the user's own machines.

The export has the text of every record that lacks a vector of a model, with its version. Whatever
embeds these texts (a GPU farm, Spark, Ray) writes ids, versions and vectors, which the import sets:
a record that was changed meanwhile keeps what it has, because its version is another one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer

from annheal.cli.output import counted
from annheal.cli.state import state_of
from annheal.client import Client
from annheal.client.results import Records
from annheal.embedding.source import NoSource, render_records
from annheal.errors import AlreadyExists, InvalidArgument, NotFound
from annheal.model.collection import Collection
from annheal.model.records import Float32Matrix, lacking
from annheal.model.suggestions import suggestion
from annheal.model.texts.template import Template, parse_template

_FIELDS: list[pa.Field[Any]] = [
    pa.field("id", pa.string(), nullable=False),
    pa.field("version", pa.int64(), nullable=False),
    pa.field("text", pa.string(), nullable=False),
]
SCHEMA: Final = pa.schema(_FIELDS)
ROWS_PER_FILE: Final = 100_000
ROWS_PER_UPDATE: Final = 1_000
NAMED_MAX: Final = 20
"""Records without a text, or that were changed meanwhile, that are named."""


def export_texts(
    context: typer.Context,
    collection: Annotated[str, typer.Argument(metavar="COLLECTION", help="The collection.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="An empty or new folder.")],
    model: Annotated[str, typer.Option("--model", help="The model whose vectors are to be made.")],
    source: Annotated[
        str,
        typer.Option(
            "--source", help="Template of the text; by default that of the model's embedder."
        ),
    ] = "",
    rows_per_file: Annotated[
        int, typer.Option("--rows-per-file", min=1, help="Records of one Parquet file.")
    ] = ROWS_PER_FILE,
) -> None:
    """Write id, version and text of the records that lack a vector of a model, as Parquet."""
    state = state_of(context)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise AlreadyExists(f"{folder} exists and is no empty folder; name another one")
    with state.client() as client:
        described = client.get_collection(collection)
        template = _template(described, model, source)
        folder.mkdir(parents=True, exist_ok=True)
        without: list[dict[str, str]] = []
        rows = files = 0
        for batch in _in_files(_texts(client, collection, model, template, without), rows_per_file):
            pq.write_table(pa.Table.from_batches([batch]), folder / f"part-{files:05d}.parquet")
            rows, files = rows + len(batch), files + 1
    shown: dict[str, Any] = {
        "records": rows,
        "files": files,
        "without_text": len(without),
        "without_text_named": without[:NAMED_MAX],
    }
    state.output.show(
        shown,
        lambda found: (
            f"{counted(found['records'], 'record')} in {counted(found['files'], 'file')};"
            f" {found['without_text']} have no text"
        ),
    )


def import_vectors(
    context: typer.Context,
    collection: Annotated[str, typer.Argument(metavar="COLLECTION", help="The collection.")],
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE…", help="Parquet files with id, version, vector.")
    ],
    model: Annotated[str, typer.Option("--model", help="The model that made the vectors.")],
) -> None:
    """Set vectors of a model from Parquet, where the record still has the exported version."""
    state = state_of(context)
    written = 0
    missing: list[str] = []
    conflicts: list[str] = []
    with state.client() as client:
        spec = _model(client.get_collection(collection), model)
        for file in files:
            for ids, versions, vectors in _vectors(file, spec.dimension):
                found = client.update(
                    collection, ids, vectors=vectors, model=model, if_versions=versions
                )
                written += found.count
                missing += found.missing
                conflicts += [one.id for one in found.conflicts if one.version]
                missing += [one.id for one in found.conflicts if not one.version]
    shown: dict[str, Any] = {
        "written": written,
        "missing": len(missing),
        "missing_named": missing[:NAMED_MAX],
        "changed_meanwhile": len(conflicts),
        "changed_meanwhile_named": conflicts[:NAMED_MAX],
    }
    state.output.show(
        shown,
        lambda found: (
            f"{counted(found['written'], 'vector')} written; {found['changed_meanwhile']} records"
            f" were changed meanwhile and {found['missing']} are gone: neither was touched"
        ),
    )


def _model(collection: Collection, model: str) -> Any:
    found = collection.model_named(model)
    if found is None or model in collection.removed:
        names = [one.name for one in collection.usable_models]
        raise NotFound(
            f"collection {collection.name!r} has no model {model[:80]!r};"
            f" {suggestion(model, names)}"
        )
    return found


def _template(collection: Collection, model: str, source: str) -> Template:
    _model(collection, model)
    text_model = collection.text_model(model)
    source = source or (text_model.source if text_model else "")
    if not source:
        raise InvalidArgument.of(
            "--source", f"is not given, and model {model!r} has none; as in '{{name}}: {{summary}}'"
        )
    return parse_template(source, field="--source")


def _texts(
    client: Client,
    collection: str,
    model: str,
    template: Template,
    without: list[dict[str, str]],
) -> Iterator[pa.RecordBatch]:
    """Yield the texts of the records that lack a vector; those without a text go to `without`."""
    for records in client.scan(collection, include="all", model=model):
        assert records.vectors is not None
        absent = np.flatnonzero(lacking(records.vectors)).tolist()
        texts = _rendered(records, template)
        kept = [row for row in absent if isinstance(texts[row], str)]
        without += [
            {"id": records.ids[row], "reason": str(texts[row])}
            for row in absent
            if isinstance(texts[row], NoSource)
        ]
        assert records.versions is not None
        yield pa.RecordBatch.from_arrays(
            [
                pa.array([records.ids[row] for row in kept], type=pa.string()),
                pa.array(records.versions[kept], type=pa.int64()),
                pa.array([texts[row] for row in kept], type=pa.string()),
            ],
            schema=SCHEMA,
        )


def _rendered(records: Records, template: Template) -> list[str | NoSource]:
    attributes = records.attributes
    if attributes is None:
        attributes = pa.RecordBatch.from_arrays([], names=[])
    payloads = records.payloads
    if payloads is None:
        payloads = pa.nulls(len(records), type=pa.binary())
    return render_records(template, attributes=attributes, payloads=payloads)


def _in_files(batches: Iterator[pa.RecordBatch], rows_max: int) -> Iterator[pa.RecordBatch]:
    """Yield the rows again in batches of `rows_max`, the last one smaller."""
    held: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        held.append(batch)
        count += len(batch)
        while count >= rows_max:
            whole = pa.Table.from_batches(held).combine_chunks()
            yield whole.slice(0, rows_max).to_batches()[0]
            held = whole.slice(rows_max).to_batches()
            count -= rows_max
    if count:
        yield pa.Table.from_batches(held).combine_chunks().to_batches()[0]


def _vectors(file: Path, dimension: int) -> Iterator[tuple[list[str], list[int], Float32Matrix]]:
    """Yield ids, versions and vectors (n, d); raises `InvalidArgument` naming file and column."""
    try:
        parquet = pq.ParquetFile(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise InvalidArgument.of(str(file), f"cannot be read as Parquet: {error}") from error
    with parquet:
        names = parquet.schema_arrow.names
        for name in ("id", "version", "vector"):
            if name not in names:
                raise InvalidArgument.of(
                    f"{file}: {name}", f"there is no such column; there are {', '.join(names)}"
                )
        first = 0
        for batch in parquet.iter_batches(ROWS_PER_UPDATE, columns=["id", "version", "vector"]):
            columns: list[Any] = [batch.column(name) for name in ("id", "version", "vector")]
            ids, versions, lists = columns
            if ids.null_count or versions.null_count or lists.null_count:
                raise InvalidArgument.of(
                    f"{file}: rows {first} to {first + len(batch)}",
                    "an id, a version or a vector is missing; leave the row out",
                )
            flat = np.asarray(lists.flatten().cast(pa.float32()), dtype=np.float32)
            lengths: Sequence[int] = pa.compute.list_value_length(lists).to_pylist()
            wrong = next((n for n, length in enumerate(lengths) if length != dimension), None)
            if wrong is not None:
                raise InvalidArgument.of(
                    f"{file}: vector[{first + wrong}]",
                    f"has {lengths[wrong]} floats, the model {dimension}",
                )
            vectors = flat.reshape(len(batch), dimension)
            bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1)).tolist()
            if bad:
                raise InvalidArgument.of(
                    f"{file}: vector[{first + bad[0]}]",
                    "holds NaN or infinity; leave the row out, or embed it again",
                )
            yield ids.to_pylist(), versions.to_pylist(), vectors
            first += len(batch)
