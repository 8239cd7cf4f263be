"""The command line from outside: exit codes, messages, both formats."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from annheal import errors
from annheal.cli.__main__ import _INTERRUPTED, hoist
from annheal.cli.app import app
from annheal.cli.exit_codes import MEANINGS, ExitCode, exit_code_of
from annheal.cli.output import cell, share, size, to_json
from annheal.cli.user_commands.assignments import parse_attributes, parse_settings
from annheal.cli.user_commands.search import read_queries
from annheal.errors import AnnhealError, InvalidArgument
from tests.support.ports import free_port
from tests.support.processes import REPOSITORY, clean_environment

TIMEOUT_S = 30


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("ANNHEAL_"):
            monkeypatch.delenv(name)


def annheal(*arguments: str, **environment: str) -> Result:
    """Run the command line in this process, as `main` does."""
    return CliRunner().invoke(app, hoist(arguments), env=environment)


def test_help_lists_commands_and_exit_codes() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "annheal.cli", "--help"],
        cwd=REPOSITORY,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert found.returncode == 0
    for word in ("import", "compact", "rebalance", "Exit codes", "does not exist"):
        assert word in found.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("no-such-command",),
        ("collection", "create", "papers"),
        ("search",),
        ("--output", "xml", "status"),
        ("serve", "coordinator"),
        ("serve", "shard-node", "--set", "capacity=much"),
        ("up", "--set", "lissten=1"),
        ("up", "--config", "/does/not/exist.toml"),
        ("up", "--listen", "nowhere"),
    ],
)
def test_wrong_usage_is_two(arguments: tuple[str, ...], tmp_path: Path) -> None:
    found = annheal(*arguments, ANNHEAL_DATA_DIR=str(tmp_path))
    assert found.exit_code == ExitCode.USAGE, found
    assert found.stdout == ""
    assert found.stderr
    assert "Traceback" not in found.stderr


def test_nobody_there_is_five_and_soon() -> None:
    found = annheal("status", "--address", f"127.0.0.1:{free_port()}", "--output", "json")
    assert found.exit_code == ExitCode.UNAVAILABLE, found
    error = json.loads(found.stderr)["error"]
    assert error["kind"] == "Unavailable"
    assert "annheal up" in error["message"]
    assert "Connection refused" in error["message"]
    assert error["retryable"] is True


@pytest.mark.parametrize(
    "arguments",
    [
        ("import", "missing.parquet", "--collection", "c"),
        ("search", "c", "--id", "a", "--text", "b"),
        ("count", "c", "--filter", "year >"),
        ("collection", "create", "c", "-d", "4", "-a", "year"),
        ("move", "papers", "node-1"),
        ("delete", "c"),
    ],
)
def test_what_is_wrong_in_itself_needs_no_server(arguments: tuple[str, ...]) -> None:
    found = annheal(*arguments, ANNHEAL_ADDRESS=f"127.0.0.1:{free_port()}")
    assert found.exit_code == ExitCode.INVALID_ARGUMENT, found
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("serve", "coordinator"), "--metadata-url"),
        (
            ("serve", "compactor", "--metadata-url", "http://x", "--object-store-url", "s3://b"),
            "--metadata-url: unknown scheme 'http'",
        ),
        (
            ("serve", "compactor", "--metadata-url", "sqlite:///m", "--object-store-url", "s3://"),
            "--object-store-url: ",
        ),
    ],
)
def test_what_a_role_lacks_names_the_flag(
    arguments: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    store = f"sqlite://{tmp_path}/m"
    found = annheal(*(store if one == "sqlite:///m" else one for one in arguments))
    assert found.exit_code == ExitCode.USAGE, found
    assert said in found.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("search", "c"), "say what to search for"),
        (("search", "c", "--vector-file", "no.npy"), "--vector-file: no.npy does not exist"),
        (("search", "c", "--vector-file", "no.fvecs"), "--vector-file: no.fvecs does not exist"),
        (
            ("collection", "create", "c", "-d", "4", "--set", "recal_objective=1"),
            "settings.recal_objective: is no setting; did you mean recall_objective?",
        ),
        (
            ("collection", "create", "c", "-d", "4", "--set", "recall_objective=abc"),
            "settings.recall_objective: 'abc': Expected `float`",
        ),
        (
            ("collection", "update", "c", "--set", "recal_objective=1"),
            "did you mean settings.recall_objective?",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_fix(arguments: tuple[str, ...], said: str) -> None:
    found = annheal(*arguments, ANNHEAL_ADDRESS=f"127.0.0.1:{free_port()}")
    assert found.exit_code == ExitCode.INVALID_ARGUMENT, found
    assert said in found.stderr
    assert found.stderr.count("no.npy") <= 1


def test_a_data_directory_in_use_names_its_holder(tmp_path: Path) -> None:
    lock = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.write(lock, b"4711\n")
        found = annheal("up", "--data-dir", str(tmp_path), "--port", "0")
    finally:
        os.close(lock)
    assert found.exit_code == ExitCode.FAILED_PRECONDITION, found
    assert "4711" in found.stderr


def test_print_config_shows_what_is_in_force(tmp_path: Path) -> None:
    config = tmp_path / "annheal.toml"
    config.write_text('log_level = "debug"\n[shard-node]\nzone = "b"\n')
    found = annheal(
        "serve", "shard-node", "--print-config", "--node-id", "n7", ANNHEAL_CONFIG=str(config)
    )
    assert found.exit_code == 0, found
    assert 'node_id = "n7"' in found.stdout
    assert 'zone = "b"' in found.stdout
    assert 'log_level = "debug"' in found.stdout


def test_ctrl_c_is_130_without_a_trace() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        process = subprocess.Popen(
            [sys.executable, "-m", "annheal.cli", "count", "c", "--timeout", "30"],
            cwd=REPOSITORY,
            env=clean_environment({"ANNHEAL_ADDRESS": f"127.0.0.1:{silent.getsockname()[1]}"}),
            stderr=subprocess.PIPE,
            text=True,
        )
        silent.settimeout(TIMEOUT_S)
        connection, _ = silent.accept()  # the call is under way, and nobody will answer
        with connection:
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == ExitCode.INTERRUPTED
    assert "Traceback" not in errors


def test_version_in_both_formats() -> None:
    plain = annheal("version").stdout.strip()
    assert json.loads(annheal("version", "-o", "json").stdout) == {"version": plain}


def test_global_options_may_stand_anywhere() -> None:
    assert hoist(["scan", "c", "-o", "json", "--address=a:1", "-n", "3"]) == [
        *("-o", "json", "--address=a:1", "scan", "c", "-n", "3")
    ]
    assert hoist(["get", "c", "--", "-o", "x"]) == ["get", "c", "--", "-o", "x"]
    assert hoist(["status", "--output"]) == ["--output", "status"]


def test_every_kind_of_error_has_a_code_that_is_explained() -> None:
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, AnnhealError)
    ]
    assert len(kinds) > 10
    for kind in kinds:
        assert exit_code_of(kind("x")) in MEANINGS
    assert exit_code_of(InvalidArgument("x")) is ExitCode.INVALID_ARGUMENT
    assert set(MEANINGS) == set(ExitCode)
    assert _INTERRUPTED == ExitCode.INTERRUPTED


def test_json_takes_numpy_and_texts_stay_texts() -> None:
    assert to_json({"v": np.float32(0.5), "a": np.arange(2)}) == '{"v":0.5,"a":[0,1]}'
    assert cell("[red]x[/red]").plain == "[red]x[/red]"
    assert cell("two\nlines").plain == r"two\nlines"
    assert cell(1234567).plain == "1,234,567"
    assert cell(None).plain == "-"
    assert size(1536) == "1.5 KiB"
    assert share(1, 0) is None


def test_assignments_on_the_command_line() -> None:
    assert parse_settings(["recall-objective=0.9", "a=", "b=word"]) == {
        "recall_objective": 0.9,
        "a": None,
        "b": "word",
    }
    assert parse_attributes(["year:int64"]) == {"year": "int64"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('["1", "2"]', "query 0, is no JSON list of numbers: has '1'"),
        ("[true, false]", "has true, which is no number"),
        ("[1, null]", "has no number at position 1"),
        ("[[1, 2], [3]]", "query 1, is no JSON list of numbers: has 1 numbers"),
        ("5", "not a vector"),
        ("[1e400]", "out of range"),
    ],
)
def test_queries_of_a_file_are_numbers(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "queries.json"
    file.write_text(text)
    with pytest.raises(InvalidArgument, match=re.escape(said)):
        read_queries(file)
    file.write_text("[[1, 2.5], [3, 4]]")
    assert read_queries(file).tolist() == [[1, 2.5], [3, 4]]
    file.write_text("[1, 2.5]")
    assert read_queries(file).tolist() == [[1, 2.5]]
