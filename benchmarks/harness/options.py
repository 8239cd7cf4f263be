"""The options that every benchmark shares, so that anyone can run it on other data."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

REPOSITORY = Path(__file__).resolve().parents[2]
SAMPLE_BASE = REPOSITORY / "samples" / "packages-10k.parquet"
SAMPLE_QUERIES = REPOSITORY / "samples" / "packages-queries.parquet"

MODES = ("embedded", "cluster")
HALF: Literal["half"] = "half"
QueriesFrom = int | Literal["half"]


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure, on which data.

    `base`, `meta` and `queries` are files; None for `base` means the samples of the repository,
    whose Parquet files then also stand in for `meta` and `queries`. `synthetic` (rows, dimension)
    generates data instead. `queries_from` leaves out the queries before that number ("half": the
    first half), and `sizes` are those of a growing collection. `json` is a file, or a folder
    that gets `<benchmark>.json`. `seconds` is the length of one round of one configuration, and
    `repeats` the number of rounds of which the median is reported.
    """

    base: Path | None
    meta: Path | None
    queries: Path | None
    synthetic: tuple[int, int] | None
    queries_from: QueriesFrom
    limit: int | None
    json: Path | None
    repeats: int
    seconds: float
    k: int
    callers: tuple[int, ...]
    modes: tuple[str, ...]
    sizes: tuple[int, ...] | None

    @property
    def on_samples(self) -> bool:
        """Whether the data is that of the repository."""
        return self.base is None and self.synthetic is None


def parse_options(
    arguments: Sequence[str] | None = None,
    *,
    description: str = "",
    repeats: int = 3,
    seconds: float = 1.0,
    modes: Sequence[str] = MODES,
    queries_from: QueriesFrom = 0,
) -> Options:
    """Return the options in `arguments` (the command line when None); exits with 2 on bad ones."""
    parser = _parser(
        description, repeats=repeats, seconds=seconds, modes=modes, queries_from=queries_from
    )
    given = parser.parse_args(arguments)
    if given.synthetic is not None and given.base is not None:
        parser.error("--synthetic takes the place of --base: give one of them")
    if given.base is None and (given.meta is not None or given.queries is not None):
        parser.error("--meta and --queries describe the rows of --base: give it as well")
    for name in ("base", "meta", "queries"):
        path = getattr(given, name)
        if path is not None and not path.is_file():
            parser.error(f"--{name}: {path} is no file")
    return Options(
        base=given.base,
        meta=given.meta,
        queries=given.queries,
        synthetic=given.synthetic,
        queries_from=given.queries_from,
        limit=given.limit,
        json=given.json,
        repeats=given.repeats,
        seconds=given.seconds,
        k=given.k,
        callers=given.callers,
        modes=given.modes,
        sizes=given.sizes,
    )


def _parser(
    description: str,
    *,
    repeats: int,
    seconds: float,
    modes: Sequence[str],
    queries_from: QueriesFrom,
) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description,
        epilog="Without --base it runs on the 10,000 packages of samples/. docs/benchmarks.md"
        " explains the figures.",
    )
    add = parser.add_argument
    add("--base", type=Path, metavar="FILE.npy", help="vectors, (n, d) of any float type")
    add("--meta", type=Path, metavar="FILE.parquet", help="ids, attributes and payload of the rows")
    add(
        "--queries",
        type=Path,
        metavar="FILE.npy",
        help="query vectors, (q, d); by default the last rows of --base, which are then not loaded",
    )
    add(
        "--synthetic",
        type=_shape,
        metavar="ROWSxDIM",
        help="generated vectors in clusters, as word embeddings have them, instead of --base",
    )
    add(
        "--queries-from",
        type=_queries_from,
        default=queries_from,
        metavar="N|half",
        help=f"leave out the queries before this one ({queries_from})",
    )
    add("--limit", type=_positive_int, metavar="N", help="use the first N rows only")
    add("--json", type=Path, metavar="OUT", help="write the figures here; a folder gets NAME.json")
    add("--repeats", type=_positive_int, default=repeats, metavar="N", help="rounds (median)")
    add("--seconds", type=_positive_float, default=seconds, metavar="S", help="length of a round")
    add("--k", type=_positive_int, default=10, metavar="K", help="neighbours of each query")
    add(
        "--callers",
        type=_counts,
        default=(1, 8, 16),
        metavar="N,N",
        help="concurrent callers (search only)",
    )
    add(
        "--modes",
        type=_modes,
        default=tuple(modes),
        metavar="MODE,MODE",
        help=f"of {', '.join(MODES)}: one process, or one for each role on etcd",
    )
    add("--sizes", type=_rising, metavar="N,N", help="rows of a growing collection (growth only)")
    return parser


def _positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
    return value


def _positive_float(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no positive number")
    return value


def _counts(text: str) -> tuple[int, ...]:
    return tuple(_positive_int(part) for part in text.split(","))


def _rising(text: str) -> tuple[int, ...]:
    found = _counts(text)
    if sorted(set(found)) != list(found):
        raise argparse.ArgumentTypeError(f"{text} does not grow")
    return found


def _shape(text: str) -> tuple[int, int]:
    rows, found, dimension = text.partition("x")
    if not found:
        raise argparse.ArgumentTypeError(f"{text} is not like 1000000x50")
    return _positive_int(rows), _positive_int(dimension)


def _queries_from(text: str) -> QueriesFrom:
    if text == HALF:
        return HALF
    if int(text) < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return int(text)


def _modes(text: str) -> tuple[str, ...]:
    found = tuple(part.strip() for part in text.split(","))
    for mode in found:
        if mode not in MODES:
            raise argparse.ArgumentTypeError(f"{mode!r} is none of {', '.join(MODES)}")
    return found
