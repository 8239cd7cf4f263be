"""Filters of a wanted selectivity: random, correlated with the vectors, far from the queries."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from annheal.filters.validate import validate_filter
from annheal.model.collection import AttributeField, AttributeType, Schema
from annheal.model.filter import And, Comparison, ComparisonOp, Filter, Prefix
from benchmarks.harness.dataset import Dataset

SELECTIVITIES = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.001, 0.0001)
FAR_GROUPS = 10
"""Groups of queries that are near one another, each with filters of its own."""
FAR_GROUP_QUERIES = 20
PREFIX_LENGTH_MAX = 12
OFF_MAX = 2.0
"""A correlated filter is left out where none comes within this factor of the selectivity."""

RANDOM, FAR, YEAR, ECOSYSTEM, NAME = "random", "far_", "year", "ecosystem", "name"


@dataclass(frozen=True, slots=True)
class Group:
    """Queries (n, d) that are asked with one filter; None asks without."""

    queries: npt.NDArray[np.float32]
    filter: Filter | None


@dataclass(frozen=True, slots=True)
class Case:
    """One line of the report: every group's filter has `matches` rows."""

    kind: str
    matches: int
    groups: tuple[Group, ...]


def columns_of(dataset: Dataset, queries: npt.NDArray[np.float32]) -> pa.RecordBatch:
    """Return the attributes that the filters use, in the rows' order.

    `random` numbers the rows at random, `far_<g>` from the farthest to the nearest of the first
    query of group g. `year`, `ecosystem` and `name` are there when the data has them.
    """
    rng = np.random.default_rng(dataset.rows)
    columns: dict[str, Any] = {RANDOM: pa.array(rng.permutation(dataset.rows))}
    for group in range(min(FAR_GROUPS, len(queries))):
        order = np.argsort(dataset.vectors @ queries[group])
        rank = np.empty(dataset.rows, dtype=np.int64)
        rank[order] = np.arange(dataset.rows)
        columns[f"{FAR}{group}"] = pa.array(rank)
    for name, kind in ((YEAR, "int64"), (ECOSYSTEM, "keyword")):
        if dataset.schema.get(name) == kind:
            column: Any = dataset.attributes.column(name).combine_chunks()
            columns[name] = column.cast(pa.int64() if kind == "int64" else pa.string())
    if dataset.payloads is not None:
        names = [json.loads(payload).get(NAME) for payload in dataset.payloads]
        if all(isinstance(name, str) for name in names):
            columns[NAME] = pa.array(names, type=pa.string())
    return pa.RecordBatch.from_pydict(columns)


def cases_of(columns: pa.RecordBatch, queries: npt.NDArray[np.float32]) -> Iterator[Case]:
    """Yield the cases from the least to the most selective."""
    rows = columns.num_rows
    groups = sum(name.startswith(FAR) for name in columns.schema.names)
    near = [
        np.ascontiguousarray(queries[np.argsort(-(queries @ queries[group]))[:FAR_GROUP_QUERIES]])
        for group in range(groups)
    ]
    correlated = _Correlated(columns)
    for selectivity in SELECTIVITIES:
        matches = max(1, round(selectivity * rows))
        if selectivity == 1.0:
            yield Case("none", rows, (Group(queries, None),))
            continue
        yield Case(RANDOM, matches, (Group(queries, _below(columns, RANDOM, matches)),))
        for kind, found, filter in correlated.closest(matches):
            yield Case(kind, found, (Group(queries, filter),))
        yield Case(
            "far",
            matches,
            tuple(
                Group(asked, _below(columns, f"{FAR}{group}", matches))
                for group, asked in enumerate(near)
            ),
        )


def _below(columns: pa.RecordBatch, name: str, matches: int) -> Filter:
    return canonical(Comparison(name, ComparisonOp.LT, matches), columns)


class _Correlated:
    """Counts of the filters that data with years, ecosystems and names allows."""

    def __init__(self, columns: pa.RecordBatch) -> None:
        self._columns = columns
        self._found: dict[str, list[tuple[int, Filter]]] = {}
        names = columns.schema.names
        if YEAR in names:
            self._found[YEAR] = list(_year_filters(columns.column(YEAR).to_pylist()))
        if ECOSYSTEM in names:
            kinds = columns.column(ECOSYSTEM).to_pylist()
            years: list[int | None] = [None] * len(kinds)
            if YEAR in names:
                years = columns.column(YEAR).to_pylist()
            self._found[ECOSYSTEM] = list(_ecosystem_filters(kinds, years))
        if NAME in names:
            self._found["prefix"] = list(
                _prefix_filters([str(name) for name in columns.column(NAME).to_pylist()])
            )

    def closest(self, matches: int) -> Iterator[tuple[str, int, Filter]]:
        """Yield the filter of each kind whose count is closest to `matches`."""
        for kind, found in self._found.items():
            count, filter = min(found, key=lambda one: abs(np.log(one[0] / matches)))
            if 1 / OFF_MAX <= count / matches <= OFF_MAX:
                yield kind, count, canonical(filter, self._columns)


def _between(first: int, last: int) -> Filter:
    return And(
        (
            Comparison(YEAR, ComparisonOp.GE, first),
            Comparison(YEAR, ComparisonOp.LE, last),
        )
    )


def _year_filters(years: list[int | None]) -> Iterator[tuple[int, Filter]]:
    counts = Counter(year for year in years if year is not None)
    for first in sorted(counts):
        total = 0
        for last in sorted(year for year in counts if year >= first):
            total += counts[last]
            yield total, _between(first, last)


def _ecosystem_filters(
    kinds: list[str | None], years: list[int | None]
) -> Iterator[tuple[int, Filter]]:
    pairs = Counter(zip(kinds, years, strict=True))
    for kind, count in Counter(kinds).items():
        if kind is None:
            continue
        equal = Comparison(ECOSYSTEM, ComparisonOp.EQ, kind)
        yield count, equal
        for year in sorted({year for year in years if year is not None}):
            if pairs[kind, year]:
                yield pairs[kind, year], And((equal, _between(year, year)))


def _prefix_filters(names: list[str]) -> Iterator[tuple[int, Filter]]:
    for length in range(1, PREFIX_LENGTH_MAX + 1):
        counts = Counter(name[:length] for name in names if len(name) >= length)
        for prefix, count in counts.items():
            yield count, Prefix(NAME, prefix)


def schema_of(columns: pa.RecordBatch) -> Schema:
    """Return the attributes that `columns` are: text is keyword, all else int64."""
    return tuple(
        AttributeField(
            field.name,
            AttributeType.KEYWORD if pa.types.is_string(field.type) else AttributeType.INT64,
        )
        for field in columns.schema
    )


def canonical(filter: Filter, columns: pa.RecordBatch) -> Filter:
    """Return a filter in the form that searches take."""
    return validate_filter(filter, schema_of(columns))
