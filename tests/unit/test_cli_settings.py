"""Settings: who wins, what is refused, what is shown."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from typer.testing import CliRunner

from annheal.cli.app import app
from annheal.cli.exit_codes import CONFIGURATION, ExitCode, exit_code_of
from annheal.cli.server.roles import embedded_settings, settings_source, shard_node_settings
from annheal.cli.server.settings import (
    ProcessSettings,
    SettingsSource,
    format_settings,
    parse_assignments,
    setting_keys,
)
from annheal.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class Inner:
    ratio: float = 0.5


@dataclass(frozen=True, slots=True)
class Router:
    router_id: str
    listen: str = "127.0.0.1:1"
    calls_max: int = 4
    patient: bool = False
    peers: tuple[str, ...] = ()
    password: str | None = None
    inner: Inner = field(default_factory=Inner)

    def __post_init__(self) -> None:
        if self.calls_max < 1:
            raise InvalidArgument.of("calls_max", "must be at least 1")


@dataclass(frozen=True, slots=True)
class Worker:
    threads: int = 1


ROLES = {"router": (ProcessSettings, Router), "worker": (ProcessSettings, Worker)}


def source(
    flags: dict[str, str] | None = None,
    environ: dict[str, str] | None = None,
    config: Path | None = None,
) -> SettingsSource:
    return SettingsSource(ROLES, flags=flags or {}, environ=environ or {}, config=config)


def router(given: SettingsSource) -> Router:
    return given.settings(Router, role="router", router_id="r")


def test_flags_win_over_environment_over_table_over_top_over_defaults(tmp_path: Path) -> None:
    path = tmp_path / "annheal.toml"
    path.write_text('calls_max = 2\nlisten = "top:1"\n[router]\ncalls_max = 3\n')
    assert router(source()).calls_max == 4
    assert router(source(config=path)).calls_max == 3
    assert router(source(config=path)).listen == "top:1"
    environ = {"ANNHEAL_CALLS_MAX": "5", "ANNHEAL_CONFIG": str(path)}
    assert router(source(environ=environ)).calls_max == 5
    assert router(source({"calls_max": "6"}, environ)).calls_max == 6
    assert router(source({"calls_max": "6"}, environ)).listen == "top:1"


def test_texts_become_the_types_of_the_fields() -> None:
    environ = {
        "ANNHEAL_PATIENT": "True",
        "ANNHEAL_PEERS": "a:1, b:2",
        "ANNHEAL_INNER_RATIO": "0.25",
        "ANNHEAL_DATA_DIR": "/var/x",
    }
    found = router(source(environ=environ))
    assert found.patient is True
    assert found.peers == ("a:1", "b:2")
    assert found.inner.ratio == 0.25
    process = source(environ=environ).settings(ProcessSettings, role="router")
    assert process.data_dir == Path("/var/x")


def test_a_key_of_another_role_is_left_alone() -> None:
    assert router(source(environ={"ANNHEAL_THREADS": "9"})) == Router("r")


@pytest.mark.parametrize(
    ("flags", "environ", "text", "words"),
    [
        ({"call_max": "1"}, {}, "", ["--set call_max", "did you mean calls_max?"]),
        ({}, {"ANNHEAL_LISTN": "x"}, "", ["ANNHEAL_LISTN", "ANNHEAL_LISTEN?"]),
        ({}, {}, "cals_max = 1", ["cals_max", "calls_max?"]),
        ({}, {}, "[router]\nthreads = 1", ["[router]", "threads"]),
        ({}, {}, "[rooter]\ncalls_max = 1", ["[rooter]", "router?"]),
        ({}, {}, "calls_max = ", ["not TOML"]),
        ({}, {}, 'calls_max = "1"', ["calls_max", "int"]),
        ({}, {"ANNHEAL_CALLS_MAX": "many"}, "", ["ANNHEAL_CALLS_MAX", "int"]),
        ({}, {"ANNHEAL_PATIENT": "maybe"}, "", ["ANNHEAL_PATIENT", "bool"]),
        ({}, {"ANNHEAL_CALLS_MAX": "0"}, "", ["ANNHEAL_CALLS_MAX", "at least 1"]),
    ],
)
def test_what_is_wrong_is_refused_with_its_source(
    tmp_path: Path,
    flags: dict[str, str],
    environ: dict[str, str],
    text: str,
    words: list[str],
) -> None:
    path = tmp_path / "annheal.toml"
    path.write_text(text)
    with pytest.raises(InvalidArgument) as caught:
        router(source(flags, environ, path))
    for word in words:
        assert word in caught.value.message
    assert caught.value.reason == CONFIGURATION
    assert exit_code_of(caught.value) is ExitCode.USAGE


def test_client_variables_are_no_settings() -> None:
    source(environ={"ANNHEAL_ADDRESS": "x", "ANNHEAL_OUTPUT": "json", "ANNHEAL_ETCD_USER": "u"})


def test_a_missing_value_says_how_to_give_it() -> None:
    with pytest.raises(InvalidArgument) as caught:
        source().settings(Router, role="router")
    assert caught.value.violations[0].field == "router_id"
    assert "ANNHEAL_ROUTER_ID" in caught.value.violations[0].description


def test_shown_settings_are_toml_that_gives_the_same_settings(tmp_path: Path) -> None:
    given = source({"peers": "a,b", "inner_ratio": "0.75", "listen": 'odd"name'})
    first = router(given)
    path = tmp_path / "shown.toml"
    path.write_text(format_settings(first, Worker()))
    assert router(source(config=path)) == first
    shown = format_settings(Router("r", password="hidden"))
    assert "hidden" not in shown


def test_assignments_need_an_equals_sign() -> None:
    assert parse_assignments(["a-b=1", "c=x=y"]) == {"a_b": "1", "c": "x=y"}
    with pytest.raises(InvalidArgument, match="key=value"):
        parse_assignments(["a"])


def test_keys_of_all_roles_do_not_mean_two_things() -> None:
    from annheal.cli.server.roles import ROLES as real

    for kinds in real.values():
        keys = [key for kind in kinds for key in setting_keys(kind)]
        twice = {key for key in keys if keys.count(key) > 1}
        # One data directory and one identity: the role's own field takes the process's.
        assert twice <= {"data_dir", "node_id"}


def test_embedded_roles_live_below_one_directory(tmp_path: Path) -> None:
    flags = {"data_dir": str(tmp_path), "lease_ttl_s": "3", "compaction_quiet_s": "1"}
    found = embedded_settings(settings_source(flags, environ={"ANNHEAL_NODE_ID": "pod-1"}))
    assert found.shard_node.data_dir == tmp_path / "node"
    assert found.compactor.scratch_dir == tmp_path / "compactor"
    assert found.coordinator.lease_ttl_s == found.shard_node.lease_ttl_s == 3
    assert found.coordinator.compaction.quiet_s == 1
    assert {found.coordinator.coordinator_id, found.shard_node.node_id} == {"local"}


def test_node_id_of_the_environment_names_every_role() -> None:
    environ = {"ANNHEAL_NODE_ID": "pod-1", "ANNHEAL_DATA_DIR": "/d"}
    process, node = shard_node_settings(settings_source({}, environ=environ))
    assert (node.node_id, str(node.data_dir), process.node_id) == ("pod-1", "/d", "pod-1")


def test_print_config_is_toml(tmp_path: Path) -> None:
    found = embedded_settings(settings_source({}, environ={}))
    text = format_settings(found.process, found.coordinator, found.shard_node, found.compactor)
    values = tomllib.loads(text)
    assert values["listen"] == "127.0.0.1:7700"
    assert values["compaction_flat_segments_max"] >= 1


def test_the_manual_names_every_key_with_its_default() -> None:
    from annheal.cli.server.roles import ROLES as real

    text = (Path(__file__).resolve().parents[2] / "docs" / "configuration.md").read_text()
    # The settings of collections follow, which are no keys of a process.
    processes = text.partition("\n## Collections\n")[0]
    rows = [line.split("|") for line in processes.splitlines() if line.startswith("| `")]
    documented: dict[str, str] = {row[1].strip(" `"): row[2].strip(" `") for row in rows}
    every = {key for kinds in real.values() for kind in kinds for key in setting_keys(kind)}
    assert documented.keys() == every
    given = SettingsSource(real, flags={}, environ={})
    values = tomllib.loads(
        format_settings(
            *(
                given.settings(kind, role=role, **{kind_id(kind): "x"})
                for role, kind in ((role, kinds[1]) for role, kinds in real.items())
            )
        )
    )
    for key, shown in documented.items():
        if shown.replace(".", "", 1).isdecimal():
            assert float(shown) == values[key], key


def kind_id(kind: type) -> str:
    """Return the field that has no default: the identity."""
    return next(key for key in setting_keys(kind) if key.endswith("_id"))


GIVEN_OPTIONS = {
    "metadata_url": "sqlite:///x/meta.sqlite",
    "object_store_url": "file:///x/objects",
    "listen": "127.0.0.1:1",
    "advertise": "host:2",
    "node_id": "n9",
    "data_dir": "/x/data",
    "zone": "z9",
    "capacity": "2.5",
    "log_level": "debug",
}


@pytest.mark.parametrize(
    ("role", "lacks"),
    [
        ("coordinator", {"data_dir", "zone", "capacity"}),
        ("shard-node", set[str]()),
        ("compactor", {"advertise", "zone", "capacity"}),
    ],
)
def test_every_option_of_a_role_reaches_its_settings(role: str, lacks: set[str]) -> None:
    options = {key: value for key, value in GIVEN_OPTIONS.items() if key not in lacks}
    flags = [
        text for key, value in options.items() for text in (f"--{key.replace('_', '-')}", value)
    ]
    printed = CliRunner().invoke(app, ["serve", role, *flags, "--print-config"])
    assert printed.exit_code == 0, printed.output
    values = {str(value) for value in tomllib.loads(printed.stdout).values()}
    assert set(options.values()) <= values
    for key in lacks:
        flag = f"--{key.replace('_', '-')}"
        refused = CliRunner().invoke(app, ["serve", role, flag, GIVEN_OPTIONS[key]])
        assert refused.exit_code == 2
