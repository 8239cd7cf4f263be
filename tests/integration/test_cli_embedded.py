"""The whole command line against a real `annheal up`."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from annheal import Client
from annheal.cli.__main__ import hoist
from annheal.cli.app import app
from annheal.cli.exit_codes import ExitCode
from tests.support.cluster import EmbeddedServer
from tests.support.processes import REPOSITORY, clean_environment, wait_until

SAMPLES = REPOSITORY / "samples" / "packages-10k.parquet"
ROWS = 2_500
TIMEOUT_S = 60

Run = Callable[..., Result]


@pytest.fixture
def run(embedded_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command against the server; `code` is the exit code expected."""
    for name in os.environ:
        if name.startswith("ANNHEAL_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("ANNHEAL_ADDRESS", embedded_server.address)

    def run(*arguments: str, code: int = 0, stdin: str | None = None) -> Result:
        found = CliRunner().invoke(app, hoist(arguments), input=stdin)
        assert found.exit_code == code, (found.stdout, found.stderr, found.exception)
        return found

    return run


@pytest.fixture
def packages(run: Run, request: pytest.FixtureRequest) -> str:
    """A collection of the test's own with some of the packages in it."""
    name = f"cli-{request.function.__name__}"[:60]
    arguments = [
        *("import", str(SAMPLES), "-c", name, "--create", "--limit", str(ROWS)),
        *("--vector-column", "minilm_l6", "--model", "minilm_l6"),
        *("--batch-rows", "400", "--concurrency", "3"),
        *("--attributes", "year,rank,month", "--payload", "name,summary", "--shards", "2"),
    ]
    report = document(run(*arguments, "--output", "json"))
    assert report["rows"] == ROWS
    assert report["rows_per_second"] > 0
    return name


def document(found: Result) -> Any:
    return json.loads(found.stdout)


def test_a_life_of_a_collection(run: Run, packages: str, tmp_path: Path) -> None:
    # Importing again changes nothing: it is how an import is resumed.
    run(
        *("import", str(SAMPLES), "-c", packages, "-n", "500", "--vector-column", "minilm_l6"),
        *("--ignore-columns", "paraphrase_l3"),
    )
    assert document(run("count", packages, "-o", "json")) == {"count": ROWS}
    info = document(run("collection", "show", packages, "-o", "json"))
    assert [field["name"] for field in info["collection"]["schema"]] == ["year", "rank", "month"]
    assert packages in run("collection", "list").stdout
    found = document(
        run("search", packages, "--id", "pypi:env-guard-cli", "-k", "3", "-i", "all", "-o", "json")
    )
    (hits,) = found["queries"]
    assert hits[0]["id"] == "pypi:env-guard-cli"
    assert hits[0]["score"] == pytest.approx(1, abs=1e-3)
    assert hits[0]["payload"]["name"] == "env-guard-cli"
    assert len(hits[0]["vector"]) == 384
    run("flush", packages)
    filtered = run(
        *("search", packages, "--id", "pypi:env-guard-cli", "-i", "year", "--explain"),
        *("--filter", "year < 2020", "--exact"),
    )
    assert "PLAN" in filtered.stdout
    assert "2026" not in filtered.stdout.split("PLAN")[0]
    np.save(tmp_path / "queries.npy", np.array([hits[0]["vector"]] * 2, dtype=np.float16))
    by_file = document(
        run("search", packages, "--vector-file", str(tmp_path / "queries.npy"), "-o", "json")
    )
    assert [query[0]["id"] for query in by_file["queries"]] == ["pypi:env-guard-cli"] * 2
    by_stdin = run("search", packages, "--vector-file", "-", stdin=json.dumps(hits[0]["vector"]))
    assert "pypi:env-guard-cli" in by_stdin.stdout
    got = document(run("get", packages, "pypi:env-guard-cli", "absent", "-o", "json", code=3))
    assert got[0]["attributes"] == {"year": 2026, "month": "2026-03"}
    lines = run("scan", packages, "-f", "year = 2024", "-n", "5", "-o", "json").stdout.splitlines()
    assert len(lines) == 5
    assert {json.loads(line)["attributes"]["year"] for line in lines} == {2024}


def test_explain_says_what_every_segment_did_and_why(run: Run, packages: str) -> None:
    run("flush", packages)
    ask = ("explain", packages, "--id", "pypi:env-guard-cli", "--filter", "year = 2024")
    found = document(run(*ask, "-o", "json"))
    matching = document(run("count", packages, "-f", "year = 2024", "-o", "json"))["count"]
    assert (found["live_rows"], found["matches"]) == (ROWS, matching)
    assert sum(one["matches"] for one in found["segments"]) == matching
    assert all(one["why"] for one in found["segments"])
    shown = run(*ask).stdout
    assert "SELECTIVITY" in shown
    assert f"{matching:,} (band {found['band']})" in shown
    both = run(*ask, "--text", "x", code=ExitCode.INVALID_ARGUMENT)
    assert "exactly one" in both.stderr


def test_text_search_finds_by_meaning(run: Run, packages: str) -> None:
    found = document(
        run("search", packages, "--text", "environment variables", "-k", "5", "-o", "json")
    )
    assert any("env" in hit["id"] for hit in found["queries"][0])


def test_deletes_ask_and_compaction_heals(run: Run, packages: str) -> None:
    refused = run("delete", packages, "-f", "year = 2020", code=ExitCode.FAILED_PRECONDITION)
    assert "--yes" in refused.stderr
    # Rows that are deleted in memory leave no trace; those of a segment do.
    run("flush", packages)
    before = document(run("count", packages, "-f", "year = 2020", "-o", "json"))["count"]
    deleted = document(run("delete", packages, "-f", "year = 2020", "--yes", "-o", "json"))
    assert deleted["deleted"] == before > 0
    run("delete", packages, "pypi:env-guard-cli", "--yes")
    assert "dead" in run("segments", packages).stdout
    planned = document(run("compact", packages, "--full", "--dry-run", "-o", "json"))
    assert planned
    assert all(task["why"] == "requested: all of the collection" for task in planned)
    assert "nothing was changed" in run("compact", packages, "--full", "--dry-run").stdout
    tasks = document(run("compact", packages, "--full", "-o", "json"))
    assert {task["phase"] for task in tasks} <= {"published", "cancelled"}
    healed = document(run("segments", packages, "-o", "json"))["segments"]
    assert sum(segment["dead_rows"] for segment in healed) == 0
    live = document(run("recall", packages, "-o", "json"))
    assert live["recall_objective"] == 0.95
    report = document(run("recall", packages, "--sample", "50", "-o", "json"))
    assert report["recall"] >= 0.95
    assert "objective" in run("recall", packages, "--sample", "20").stdout
    done = tasks[0]["task_id"]
    assert done in run("tasks", packages, "-o", "json").stdout
    assert done in run("tasks", "--phase", tasks[0]["phase"], "--limit", "9").stdout
    assert document(run("tasks", "show", done, "-o", "json"))["task_id"] == done
    for command in ("cancel", "retry"):
        refused = run("tasks", command, done, code=ExitCode.FAILED_PRECONDITION)
        assert tasks[0]["phase"] in refused.stderr


def test_compacting_what_does_not_exist_says_what_does(run: Run, packages: str) -> None:
    unknown = run("compact", packages, "--segment", "x", code=ExitCode.NOT_FOUND)
    assert "has no segment 'x'; there are:" in unknown.stderr
    wrong = run("compact", packages, "--shard", "99", code=ExitCode.INVALID_ARGUMENT)
    assert "99" in wrong.stderr
    run("tasks", "retry", "none", code=ExitCode.NOT_FOUND)


def test_the_cluster_is_shown(run: Run, packages: str) -> None:
    status = document(run("status", "-o", "json"))
    assert status["leader"] == "local"
    assert "local" in run("status").stdout
    assert document(run("nodes", "-o", "json"))[0]["registration"]["node_id"] == "local"
    shards = document(run("shards", packages, "-o", "json"))
    assert [(shard["shard"], shard["owner"]) for shard in shards] == [(0, "local"), (1, "local")]
    assert "evenly" in run("rebalance", "--dry-run").stdout
    run("move", f"{packages}/0", "absent-node", code=ExitCode.NOT_FOUND)
    run("drain", "absent-node", code=ExitCode.NOT_FOUND)


def test_health_answers_an_operators_questions(run: Run, packages: str) -> None:
    shown = run("health", packages).stdout
    assert "do all processes run?" in shown
    assert "which model made the vectors?" in shown
    found = document(run("health", packages, "-o", "json"))
    assert found["health"] in ("good", "watch")
    answers = {one["question"]: one for one in found["collections"][packages]}
    assert answers["are dead rows removed?"]["answer"].startswith("0 of ")
    assert answers["which model made the vectors?"]["health"] == "good"
    run("delete", packages, "--filter", "year > 0", "--yes")
    run("collection", "update", packages, "--set", "compaction_automatic=false")
    run("flush", packages)
    again = document(run("health", packages, "-o", "json"))
    [degraded] = [
        one for one in again["collections"][packages] if one["question"].startswith("are degraded")
    ]
    assert degraded["health"] == "watch"
    run("health", "nothing-of-this-name", code=ExitCode.NOT_FOUND)


def test_garbage_is_counted_before_it_is_collected(run: Run, packages: str) -> None:
    run("flush", packages)
    deleted = document(run("delete", packages, "-f", "year < 2024", "--yes", "-o", "json"))
    run("compact", packages, "--full")

    def waiting() -> dict[str, Any]:
        report = document(run("gc", "--dry-run", "-o", "json"))
        assert report["dry_run"] is True
        found: dict[str, Any] = next(k for k in report["kinds"] if k["kind"] == "segments")
        return found

    # Not while a shard has another task: then its new objects are not looked at.
    wait_until(lambda: waiting()["waiting_objects"], timeout_s=60.0, what="sources that wait")
    segments = waiting()
    assert segments["waiting_bytes"] > segments["waiting_objects"]
    assert segments["deleted_objects"] == 0
    shown = run("gc").stdout
    assert "DELETED" in shown
    assert "3600 s" in shown
    left = document(run("count", packages, "-o", "json"))["count"]
    assert 0 < left == ROWS - deleted["deleted"] < ROWS


def test_collections_by_hand_and_exit_codes(run: Run) -> None:
    run("collection", "create", "cli-hand", "-d", "4", "-a", "n:int64", "--set", "recall_k=5")
    run("collection", "create", "cli-hand", "-d", "4", code=ExitCode.CONFLICT)
    shown = document(
        run("collection", "update", "cli-hand", "--set", "recall_objective=0.99", "-o", "json")
    )
    assert shown["settings"]["recall_objective"] == 0.99
    assert shown["settings"]["recall_k"] == 5
    assert shown["settings"]["storage"] == "float32"
    run("collection", "update", "cli-hand", "--set", "storage=fp16")
    assert re.search(r"storage\s+fp16", run("collection", "show", "cli-hand").stdout)
    unknown = run(
        *("collection", "update", "cli-hand", "--set", "storage=fp8"),
        code=ExitCode.INVALID_ARGUMENT,
    )
    assert "'fp8' is none of float32, fp16, int8" in unknown.stderr
    wrong = run(
        *("collection", "update", "cli-hand", "--set", "recall_objective=7"),
        code=ExitCode.INVALID_ARGUMENT,
    )
    assert "recall_objective" in wrong.stderr
    run("count", "cli-absent", code=ExitCode.NOT_FOUND)
    failed = run("count", "cli-hand", "-f", "m = 1", "-o", "json", code=ExitCode.INVALID_ARGUMENT)
    assert "m" in json.loads(failed.stderr)["error"]["message"]
    absent = run("import", str(SAMPLES), "-c", "cli-none", code=ExitCode.NOT_FOUND)
    assert "--create" in absent.stderr
    run("import", str(SAMPLES), "-c", "cli-hand", code=ExitCode.INVALID_ARGUMENT)
    mismatch = run(
        *("import", str(SAMPLES), "-c", "cli-hand", "--vector-column", "minilm_l6"),
        *("--ignore-columns", "paraphrase_l3"),
        code=ExitCode.INVALID_ARGUMENT,
    )
    assert "384" in mismatch.stderr
    run("collection", "drop", "cli-hand", "--yes")
    run("collection", "show", "cli-hand", code=ExitCode.NOT_FOUND)


def test_parts_of_records_are_updated(run: Run, packages: str) -> None:
    lines = run("scan", packages, "--limit", "2", "-o", "json").stdout.splitlines()
    first, second = (json.loads(line) for line in lines)
    ids = (first["id"], second["id"])
    run("update", packages, *ids, "--set", "year=1999", "--unset", "rank")
    shown = document(run("get", packages, *ids, "--include", "all", "-o", "json"))
    for before, after in zip((first, second), shown, strict=True):
        expected = {**before["attributes"], "year": 1999}
        expected.pop("rank", None)
        assert after["attributes"] == expected
        assert after["payload"] == before["payload"]
        assert len(after["vector"]) == 384
    version = str(shown[0]["version"])
    asked = ("update", packages, ids[0], "--payload", '{"a": 1}', "--if-version", version)
    assert "updated 1 record" in run(*asked).stdout
    lost = run(*asked, code=ExitCode.CONFLICT)
    assert "nothing was written" in lost.stderr
    absent = run("update", packages, "nobody", "--set", "year=1", code=ExitCode.NOT_FOUND)
    assert "'nobody'" in absent.stderr
    for wrong, field in (
        (("--set", "year"), "--set"),
        (("--set", "year=x"), "--set year"),
        (("--set", "yaer=late"), "attributes.yaer"),
        (("--set", "year=1", "--unset", "year"), "--unset"),
        ((), "attributes"),
    ):
        refused = run("update", packages, ids[0], *wrong, code=ExitCode.INVALID_ARGUMENT)
        assert field in refused.stderr
    two = run("update", packages, *ids, "--if-version", "1", code=ExitCode.INVALID_ARGUMENT)
    assert "--if-version" in two.stderr
    table = run("get", packages, ids[0], "--include", "version").stdout
    assert "VERSION" in table
    assert "VERSION" in run("search", packages, "--id", ids[0], "--include", "version").stdout


def test_a_reader_that_leaves_ends_the_command_quietly(
    run: Run, packages: str, embedded_server: EmbeddedServer
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "annheal.cli", "scan", packages, "--include", "all"],
        cwd=REPOSITORY,
        env=clean_environment({"ANNHEAL_ADDRESS": embedded_server.address}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline()
    process.stdout.close()
    with process.stderr:
        errors = process.stderr.read()
    assert process.wait(TIMEOUT_S) == ExitCode.BROKEN_PIPE
    assert errors == b""


def test_ctrl_c_ends_the_server_cleanly(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "annheal.cli", "up", "--data-dir", str(tmp_path), "--port", "0"],
        cwd=REPOSITORY,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    ready = process.stdout.readline()
    assert (tmp_path / "address").read_text().strip() in ready
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert not (tmp_path / "address").exists()


def test_names_that_do_not_exist_are_answered_with_those_that_do(run: Run, packages: str) -> None:
    absent = run("get", packages, "no-such-id", code=ExitCode.NOT_FOUND)
    assert absent.stdout == ""
    assert "has no record 'no-such-id'" in absent.stderr
    typo = run("get", packages, "no-such-id", "-i", "yaer", code=ExitCode.INVALID_ARGUMENT)
    assert "unknown attribute 'yaer'; did you mean year?" in typo.stderr
    again = ("import", str(SAMPLES), "-c", packages, "-n", "5", "--vector-column", "minilm")
    assert "did you mean minilm_l6?" in run(*again, code=ExitCode.INVALID_ARGUMENT).stderr
    assert "(1 shard)" in run("collection", "create", f"{packages[:50]}-1", "-d", "4").stdout


def test_an_import_that_fails_says_what_it_left_and_goes_on_from_there(
    run: Run, tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    rows: list[dict[str, Any]] = [
        {"id": f"r{row}", "vector": [1, row], "tag": f"tag {row % 7}", "text": "x" * (60 + row)}
        for row in range(100)
    ]
    rows[61]["tag"] = "long" * 2_000
    file.write_text("\n".join(map(json.dumps, rows)))
    run("collection", "create", "cli-left", "-d", "2", "-a", "tag:keyword")
    ask = ("import", str(file), "-c", "cli-left", "--batch-rows", "2", "--concurrency", "1")
    told = run(*ask, code=ExitCode.INVALID_ARGUMENT).stderr
    assert "rows.jsonl: 100 rows of 2 floats; attributes: tag:keyword; payload: text" in told
    assert "rows.jsonl:62: attributes.tag[5]: " in told
    assert "56 records (rows 0 to 55 of rows.jsonl) are written." in told
    assert "Of the next 8 some may be written." in told
    assert "Resume with --skip-rows 56" in told
    failed = json.loads(run(*ask, "-o", "json", code=ExitCode.INVALID_ARGUMENT).stderr)["error"]
    assert failed["metadata"]["resume_with_skip_rows"] == "56"
    rows[61]["tag"] = "short"
    file.write_text("\n".join(map(json.dumps, rows)))
    report = document(run(*ask, "--skip-rows", "56", "-o", "json"))
    assert (report["rows"], report["skipped"], report["created"]) == (44, 56, False)
    assert report["payload"] == ["text"]
    assert document(run("count", "cli-left", "-o", "json")) == {"count": 100}
    # Ctrl-C says the same.
    sending = Client.upsert

    def interrupted(
        client: Client, collection: str, ids: list[str], *rest: Any, **named: Any
    ) -> Any:
        if "r9" in ids:
            raise KeyboardInterrupt
        return sending(client, collection, ids, *rest, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Client, "upsert", interrupted)
        told = run(*ask, "--limit", "50", code=ExitCode.INTERRUPTED).stderr
    assert "8 records (rows 0 to 7 of rows.jsonl) are written." in told
    assert "Resume with --skip-rows 8 --limit 42;" in told
    # A collection that was made for nothing is named.
    file.write_text('{"id": "a", "vector": [1, 2]}\n{"id": "' + "b" * 600 + '", "vector": [1, 2]}')
    told = run(
        *("import", str(file), "-c", "cli-made", "--create"), code=ExitCode.INVALID_ARGUMENT
    ).stderr
    assert "Collection cli-made was created." in told
    assert "rows.jsonl:2: " in told
    run("collection", "drop", "cli-made", "--yes")


def test_what_becomes_nothing_is_said_before_anything_is_written(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"id": "a", "vector": [1], "text": "t" * 70}, {"id": "b", "vector": [1], "payload": 1}]
    file.write_text("\n".join(map(json.dumps, rows)))
    ask = ("import", str(file), "-c", "cli-said", "--create")
    assert "text would be lost" in run(*ask, code=ExitCode.INVALID_ARGUMENT).stderr
    run("collection", "show", "cli-said", code=ExitCode.NOT_FOUND)
    told = run(*ask, "--ignore-columns", "text")
    assert "not taken: text" in told.stderr
    assert "--collection" in run("import", str(file), code=ExitCode.USAGE).stderr


def test_ids_and_payloads_cannot_steer_the_terminal(
    run: Run, embedded_server: EmbeddedServer
) -> None:
    hostile = "\x1b]0;owned\x07"
    with Client(embedded_server.address) as client:
        client.create_collection("cli-steer", 2, attributes={"tag": "keyword"})
        client.upsert(
            "cli-steer",
            [hostile, f"{hostile}2"],
            [[1, 0], [0, 1]],
            attributes={"tag": [f"tag{hostile}", None]},
            payloads=[{"text": hostile + "\x9b2J"}, None],
        )
    commands: list[tuple[str, ...]] = [
        ("get", "cli-steer", hostile, f"{hostile}2", "-i", "all"),
        ("scan", "cli-steer", "-i", "all"),
        ("search", "cli-steer", "--id", hostile, "--id", f"{hostile}2", "-i", "all"),
        ("explain", "cli-steer", "--id", hostile),
        ("count", "cli-steer", "-f", f"tag = 'tag{hostile}'"),
    ]
    for command in commands:
        found = run(*command)
        assert "\x1b" not in found.stdout + found.stderr, command
        assert "\x9b" not in found.stdout + found.stderr, command
    shown = run(*commands[0]).stdout
    assert "\\u001b]0;owned\\u0007" in shown
    absent = run("get", "cli-steer", f"{hostile}3", code=ExitCode.NOT_FOUND)
    assert "\x1b" not in absent.stderr
    wrong = run("count", "cli-steer", "-f", f"{hostile} = 1", code=ExitCode.INVALID_ARGUMENT)
    assert "\x1b" not in wrong.stderr


def test_searches_are_counted_as_soon_as_they_were_made(run: Run, packages: str) -> None:
    """They are measured within a minute; until then the commands claimed that nobody searched."""
    assert "no search since the nodes" in run("filters", packages).stdout
    for _ in range(3):
        run("search", packages, "--id", "pypi:env-guard-cli")
    run("search", packages, "--id", "pypi:env-guard-cli", "--filter", "year = 2024")
    found = document(run("filters", packages, "-o", "json"))
    assert {one["band"]: one["seen"] for one in found["bands"]}["unfiltered"] == 3
    assert sum(one["seen"] for one in found["bands"]) == 4
    assert "unknown; 3 live queries" in run("filters", packages).stdout
    told = run("recall", packages).stderr
    assert "4 searches so far" in told
