"""Watch a collection get another embedding model while a client reads and writes it.

`make demo-migration` runs it; it starts a server of its own in a temporary folder and removes both.
`--rows N` takes fewer packages. The exit code is 0 when everything that it checks was true.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import numpy.typing as npt
from rich.table import Table

from annheal import Client
from annheal.errors import InvalidArgument
from annheal.model.topology.migration.state import MigrationPhase
from annheal.model.topology.migration.view import MigrationStatus
from samples.demo import (
    CONNECT_TIMEOUT_S,
    LATE,
    PACKAGES,
    Demo,
    check_records,
    compact,
    insert,
    on_stage,
    show_hits,
    start,
    verdict,
)
from samples.demo_model import FOLDER_NAME, prepare_model
from samples.demo_state import ATTRIBUTES, COLLECTION, VECTOR_COLUMN, K, audit, load_packages
from samples.demo_traffic import Traffic

OLD, NEW = VECTOR_COLUMN, "paraphrase_l3"
SOURCE = "{name}: {summary}"
DIMENSION = 384
SHARDS = 2
PHASE_TIMEOUT_S = 300.0
"""The longest that one phase may take; on two idle cores none takes a fifth of it."""
ROLLBACK_MAX_S = 1.0
POLL_S = 0.2
REPORT_INTERVAL_S = 2.0
VALIDATIONS_MAX = 3
"""One of the gate's figures is a ratio of latencies, which other programs can disturb."""
WHO = "demo"
QUERIES = 100
SAME_MODEL_MIN, OTHER_MODEL_MAX = 0.8, 0.5
"""Shares of the brute-force neighbours of a model that tell whether this model answered."""
FREED_MIN = 0.25
"""Least share of the bytes on disk that a purge frees: half of the vectors and graphs go."""
DISK_TIMEOUT_S = 60.0
SEGMENTS, PARTS = "objects/segments", "objects/vectors"
"""Where segments lie, and their vectors and graphs of further models."""
ROWS_DEFAULT, ROWS_MIN = 10_000, 300

# No record may lack a vector of the new model at the commit. What a purge makes superfluous is
# deleted after seconds instead of an hour, so that the freed bytes can be seen.
MIGRATION_SETTINGS = {"lacking_share_max": 0.0}
SETTINGS = {"collection_interval_s": "2", "collection_grace_s": "2"}

TEXTS = (
    "draw charts in the terminal",
    "turn speech into text",
    "send messages to a slack channel",
)


@dataclass(frozen=True, slots=True)
class Answers:
    """The ids and scores of the same queries by text, in the same order."""

    hits: list[list[tuple[str, float]]]

    def share(self, truth: list[set[str]]) -> float:
        """Return the mean share of the hits that are in `truth`."""
        found = [
            len({name for name, _ in hits} & true) / K
            for hits, true in zip(self.hits, truth, strict=True)
        ]
        return float(np.mean(found))


def fill(demo: Demo, client: Client) -> None:
    """Create the collection with its old model and import the packages."""
    demo.chapter(
        "2. A collection with one model",
        f"Its vectors are of {OLD} (all-MiniLM-L6-v2). The server has this model, and embeds texts"
        f" of writes and of queries. The source of a record's text is {SOURCE!r}.",
    )
    client.create_collection(
        COLLECTION,
        DIMENSION,
        attributes=ATTRIBUTES,
        shard_count=SHARDS,
        model=OLD,
        embedder=OLD,
        source=SOURCE,
    )
    insert(demo, client)
    compact(demo, client, "the rows get their graphs, unless they are few", tasks_min=0)


def add_model(demo: Demo, client: Client) -> None:
    """Add the new model and show what a migration would take."""
    demo.chapter(
        "3. A second model, and a plan",
        f"{NEW} (paraphrase-MiniLM-L3-v2) is an ONNX file in the server's folder of models. Its"
        " vectors cannot be compared with the old ones: queries, records and graphs must change"
        " together.",
    )
    client.add_model(
        COLLECTION,
        NEW,
        DIMENSION,
        embedder={"kind": "onnx", "folder": FOLDER_NAME, "tokens_max": 128},
        source=SOURCE,
    )
    try:
        client.search(COLLECTION, np.ones(DIMENSION), model="no-such-model")
        refusal = ""
    except InvalidArgument as error:
        refusal = error.message
    demo.check(
        "a vector of an unknown model is refused, with the names there are",
        OLD in refusal and NEW in refusal,
        refusal,
    )
    plan = client.plan_migration(COLLECTION, NEW)
    demo.say(
        f"  plan: {plan.rows_lacking:,} of {plan.rows:,} records need a vector,"
        f" {plan.characters:,} characters, about {plan.tokens:,} tokens;"
        f" {plan.rows_per_s:,.0f} records/s in a trial, so about {plan.duration_s:.0f} s;"
        f" {plan.disk_bytes / 1e6:.1f} MB more on disk, {plan.memory_bytes / 1e6:.1f} MB in memory"
    )
    demo.check(
        "the plan counts every record",
        plan.rows == plan.rows_lacking == len(demo.ledger.records),
        f"{plan.rows_lacking:,} of {len(demo.ledger.records):,}",
    )


def migrate(demo: Demo, client: Client) -> None:
    """Let the server embed every record again, while a client writes and asks."""
    demo.chapter(
        "4. Backfill, while a client goes on",
        "The server reads every record's source and stores a second vector. Meanwhile a client"
        " upserts by text, deletes, and asks by text, and compares each answer with what was"
        " acknowledged.",
    )
    traffic = Traffic(client.address, demo.ledger, demo.packages, demo.late)
    with traffic.running():
        client.start_migration(
            COLLECTION, NEW, settings=MIGRATION_SETTINGS, who=WHO, why="a demonstration"
        )
        started_s = time.monotonic()
        found = until(demo, client, _is_measured)
        took_s = time.monotonic() - started_s
        traffic.wait_for_rounds()
    demo.check(
        "every record has got a vector of the new model",
        found.rows_skipped == 0 and found.migration.lacking_share == 0,
        f"{found.rows_done:,} records after {took_s:.0f} s"
        f" ({found.rows_done / took_s:,.0f} records/s, beside the client),"
        f" {found.rows_skipped} skipped",
    )
    check_traffic(demo, traffic, "during the backfill")


def check_traffic(demo: Demo, traffic: Traffic, moment: str) -> None:
    """Check what a client saw."""
    demo.check(
        f"each answer {moment} was true",
        traffic.right,
        f"{traffic.queries:,} queries by text beside {traffic.upserts:,} upserts and"
        f" {traffic.deletes:,} deletes; {traffic.seen}",
    )


def validate(demo: Demo, client: Client) -> None:
    """Let the leader measure the new model, and show the figures."""
    demo.chapter(
        "5. The gate",
        "The leader compares the new model with the old one. Below a threshold a commit is"
        " refused. Two useful models share a part of their answers; a broken one shares none.",
    )
    for _ in range(VALIDATIONS_MAX):
        client.validate_migration(COLLECTION, who=WHO)
        found = until(demo, client, _is_measured)
        if found.migration.phase is MigrationPhase.READY:
            break
    table = Table(title="what was measured", title_justify="left", header_style="bold")
    for title in ("figure", "measured", "needed"):
        table.add_column(title, justify="left" if title == "figure" else "right")
    for one in found.findings:
        value = "-" if one.value is None else f"{one.value:.3f}"
        need = f"{'at least' if one.at_least else 'at most'} {one.threshold:g}"
        table.add_row(one.name, value if one.passed else f"[red]{value}[/red]", need)
    demo.console.print(table)
    demo.check(
        "the new model passes",
        found.migration.phase is MigrationPhase.READY,
        found.migration.verdict.failures or f"{len(found.findings)} figures",
    )


def switch(demo: Demo, client: Client) -> None:
    """Commit, look at the answers, and go back."""
    demo.chapter(
        "6. Commit, and back again",
        "A commit changes which model answers: one transaction in the metadata store. The old"
        " vectors stay until the purge, so the way back is as short.",
    )
    compact(demo, client, "so that nothing but the model changes", tasks_min=0)
    truth = {model: nearest(demo, model) for model in (OLD, NEW)}
    show_texts(demo, client, "before, by the old model")
    first_before = client.search(COLLECTION, text=TEXTS[0], k=K)
    before = ask(demo, client)
    client.commit_migration(COLLECTION, who=WHO, why="the gate was passed")
    show_texts(demo, client, "after the commit, by the new model")
    after = ask(demo, client)
    for model, other, answers, moment in (
        (OLD, NEW, before, "before the commit the old model answers"),
        (NEW, OLD, after, "after the commit the new model answers"),
    ):
        own, foreign = answers.share(truth[model]), answers.share(truth[other])
        demo.check(
            moment,
            own >= SAME_MODEL_MIN and foreign <= OTHER_MODEL_MAX,
            f"{own:.3f} of the hits are neighbours by {model}, {foreign:.3f} by {other}"
            " (brute force)",
        )
    started_s = time.monotonic()
    client.rollback_migration(COLLECTION, who=WHO, why="a drill")
    first = client.search(COLLECTION, text=TEXTS[0], k=K)
    took_s = time.monotonic() - started_s
    again = ask(demo, client)
    demo.check(
        "after a rollback the old answers come back exactly",
        again == before and first.ids == first_before.ids,
        f"{sum(a == b for a, b in zip(again.hits, before.hits, strict=True))} of {QUERIES} queries"
        " have the same ids and scores",
    )
    demo.check(
        f"within {ROLLBACK_MAX_S:g} s",
        took_s <= ROLLBACK_MAX_S,
        f"rollback and first answer took {took_s * 1e3:.0f} ms",
    )


def purge(demo: Demo, client: Client) -> None:
    """Commit again, delete the old vectors while a client goes on, and show what that freed."""
    demo.chapter(
        "7. Commit again, and purge",
        "Segments are rewritten without the old vectors; from here there is no way back. The client"
        " writes and asks meanwhile.",
    )
    bytes_before = segment_bytes(demo, client)
    traffic = Traffic(client.address, demo.ledger, demo.packages, demo.late)
    with traffic.running():
        client.commit_migration(COLLECTION, who=WHO, why="for good")
        traffic.wait_for_rounds()
        client.purge_migration(COLLECTION, who=WHO, why="the old model is not needed any more")
        until(demo, client, lambda one: one.migration.phase is MigrationPhase.PURGED)
        traffic.wait_for_rounds()
    check_traffic(demo, traffic, "during commit and purge")
    names = [one.name for one in client.get_collection(COLLECTION).usable_models]
    demo.check("one model is left", names == [NEW], ", ".join(names))
    bytes_after = segment_bytes(demo, client)
    demo.check(
        "the old vectors and graphs are gone from the disk",
        bytes_after <= (1 - FREED_MIN) * bytes_before,
        f"{bytes_before / 1e6:.1f} MB of segments before, {bytes_after / 1e6:.1f} MB after:"
        f" {(bytes_before - bytes_after) / 1e6:.1f} MB freed",
    )


def verify(demo: Demo, client: Client) -> None:
    """Compare everything with what was acknowledged."""
    demo.chapter(
        "8. Is everything there?",
        "Every record is read back and compared with what the server had acknowledged, and deleted"
        " ones are searched for by their vectors of the new model.",
    )
    vectors = vectors_of(NEW)
    deleted = {name: vectors[name] for name in demo.ledger.deleted}
    check_records(demo, audit(client, replace(demo.ledger, deleted=deleted), model=NEW))


def vectors_of(model: str) -> dict[str, npt.NDArray[np.float32]]:
    """Return the vectors of one model of all packages in the sample files, by id."""
    return {
        name: vector
        for packages in (load_packages(file, column=model) for file in (PACKAGES, LATE))
        for name, vector in zip(packages.ids, packages.vectors, strict=True)
    }


def nearest(demo: Demo, model: str) -> list[set[str]]:
    """Return the `K` nearest live records of each query by one model, by brute force."""
    vectors, ids = vectors_of(model), list(demo.ledger.records)
    base = np.stack([vectors[name] for name in ids])
    queries = np.stack([vectors[name] for name in demo.late.ids[-QUERIES:]])
    best = np.argpartition(-(queries @ base.T), K, axis=1)[:, :K]
    return [{ids[row] for row in rows} for rows in best]


def ask(demo: Demo, client: Client) -> Answers:
    """Ask the last `QUERIES` packages of the second file, by their texts."""
    texts = [SOURCE.format_map(payload) for payload in demo.late.payloads[-QUERIES:]]
    found = client.search_batch(COLLECTION, texts=texts, k=K)
    return Answers([[(hit.id, hit.score) for hit in one] for one in found])


def show_texts(demo: Demo, client: Client, moment: str) -> None:
    """Print the answers to a few texts."""
    for text in TEXTS:
        found = client.search(COLLECTION, text=text, k=3, include=["year", "payload"])
        show_hits(demo, f'"{text}", {moment}', found)


def until(
    demo: Demo, client: Client, condition: Callable[[MigrationStatus], bool]
) -> MigrationStatus:
    """Return the migration once `condition` holds, and print its progress until then.

    Raises RuntimeError with what is known of it when that takes too long.
    """
    deadline_s = time.monotonic() + PHASE_TIMEOUT_S
    said, said_s = "", -REPORT_INTERVAL_S
    while True:
        found = client.migration(COLLECTION)
        now_s, text = time.monotonic(), progress(found)
        if text != said and now_s - said_s >= REPORT_INTERVAL_S:
            demo.say(f"  {text}")
            said, said_s = text, now_s
        if condition(found):
            return found
        if now_s > deadline_s:
            raise RuntimeError(f"no end after {PHASE_TIMEOUT_S:g} s: {text}")
        time.sleep(POLL_S)  # until the condition holds, by the deadline above


def progress(found: MigrationStatus) -> str:
    """Return a line about a migration."""
    one = found.migration
    text = f"{one.phase}"
    if one.coverage is not None and one.phase is MigrationPhase.BACKFILL:
        text += f": {found.rows_done:,} of {one.coverage.rows:,} records"
        if found.eta_s:
            text += f", {one.coverage.rows_per_s:,.0f} records/s, {found.eta_s:.0f} s left"
    return text + (f" ({one.error})" if one.error else "")


def _is_measured(found: MigrationStatus) -> bool:
    one = found.migration
    return one.phase in (MigrationPhase.VALIDATE, MigrationPhase.READY) and not one.measuring


def segment_bytes(demo: Demo, client: Client) -> int:
    """Return the bytes on disk of all segments, once those that are replaced are deleted."""
    client.flush(COLLECTION)
    folders = [demo.server.data_dir / name for name in (SEGMENTS, PARTS)]
    deadline_s = time.monotonic() + DISK_TIMEOUT_S
    while time.monotonic() < deadline_s:
        live = {one.segment_id for one in client.segments(COLLECTION).segments}
        if live == {path.name for folder in folders for path in folder.glob("*/*/*")}:
            break
        time.sleep(POLL_S)  # until the garbage is deleted, by the deadline above
    return demo.server.disk_bytes(SEGMENTS) + demo.server.disk_bytes(PARTS)


def play(demo: Demo) -> int:
    """Run the whole story; return the exit code."""
    started_s = time.monotonic()
    address = start(demo)
    prepare_model(demo.server.data_dir)
    with Client(address, connect_timeout_s=CONNECT_TIMEOUT_S) as client:
        fill(demo, client)
        add_model(demo, client)
        migrate(demo, client)
        validate(demo, client)
        switch(demo, client)
        purge(demo, client)
        verify(demo, client)
    return verdict(demo, started_s, following="docs/operations/model-migration.md")


def main(arguments: list[str] | None = None) -> int:
    """Play the demonstration in a folder that is removed afterwards."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--rows", type=int, default=ROWS_DEFAULT, help=f"packages to store ({ROWS_DEFAULT:,})"
    )
    given = parser.parse_args(arguments)
    if not ROWS_MIN <= given.rows <= ROWS_DEFAULT:
        parser.error(f"--rows must be {ROWS_MIN:,} to {ROWS_DEFAULT:,}")
    return on_stage(play, SETTINGS, rows=given.rows)


if __name__ == "__main__":
    sys.exit(main())
