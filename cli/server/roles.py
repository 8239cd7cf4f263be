"""The server roles and where their settings come from."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from annheal.cli.server.settings import ProcessSettings, SettingsSource
from annheal.compactor.settings import CompactorSettings
from annheal.coordinator.settings import CoordinatorSettings
from annheal.errors import AnnhealError
from annheal.shard_node.settings import ShardNodeSettings

COORDINATOR: Final = "coordinator"
SHARD_NODE: Final = "shard-node"
COMPACTOR: Final = "compactor"
ROLES: Final[Mapping[str, tuple[type[Any], ...]]] = {
    COORDINATOR: (ProcessSettings, CoordinatorSettings),
    SHARD_NODE: (ProcessSettings, ShardNodeSettings),
    COMPACTOR: (ProcessSettings, CompactorSettings),
}
DEFAULT_LISTEN: Final = "127.0.0.1:7700"
LOCAL: Final = "local"
"""The identity of every role in embedded mode."""


@dataclass(frozen=True, slots=True)
class EmbeddedSettings:
    """Settings of all roles in one process."""

    process: ProcessSettings
    coordinator: CoordinatorSettings
    shard_node: ShardNodeSettings
    compactor: CompactorSettings


def settings_source(
    flags: Mapping[str, str],
    *,
    config: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> SettingsSource:
    """Read what was given, checked against the settings of all roles."""
    return SettingsSource(ROLES, flags=flags, environ=environ, config=config)


def coordinator_settings(source: SettingsSource) -> tuple[ProcessSettings, CoordinatorSettings]:
    """Return the settings of a coordinator process."""
    process = source.settings(ProcessSettings, role=COORDINATOR)
    own = source.settings(
        CoordinatorSettings,
        role=COORDINATOR,
        coordinator_id=process.node_id or _unique(COORDINATOR),
        listen=DEFAULT_LISTEN,
    )
    return process, own


def shard_node_settings(source: SettingsSource) -> tuple[ProcessSettings, ShardNodeSettings]:
    """Return the settings of a shard node process."""
    process = source.settings(ProcessSettings, role=SHARD_NODE)
    # Stable over restarts: what an operator decided about the node is kept under its id.
    node_id = process.node_id or socket.gethostname()
    own = source.settings(
        ShardNodeSettings,
        role=SHARD_NODE,
        node_id=node_id,
        # Nodes that were started in one working directory do not share what nobody chose.
        data_dir=process.data_dir / f"{SHARD_NODE}-{quote(node_id, safe='')}",
    )
    return process, own


def compactor_settings(source: SettingsSource) -> tuple[ProcessSettings, CompactorSettings]:
    """Return the settings of a compactor process."""
    process = source.settings(ProcessSettings, role=COMPACTOR)
    own = source.settings(
        CompactorSettings,
        role=COMPACTOR,
        worker_id=process.node_id or _unique(COMPACTOR),
        scratch_dir=process.data_dir / "compactor",
        listen="127.0.0.1:7720",
    )
    return process, own


def embedded_settings(source: SettingsSource) -> EmbeddedSettings:
    """Return the settings of `annheal up`: every role below one data directory."""
    process = source.settings(ProcessSettings, role=COORDINATOR)
    coordinator = source.settings(
        CoordinatorSettings,
        role=COORDINATOR,
        coordinator_id=LOCAL,
        listen=DEFAULT_LISTEN,
        embedder_dir=process.data_dir / "embedders",
    )
    node = source.settings(ShardNodeSettings, role=SHARD_NODE, node_id=LOCAL)
    compactor = source.settings(
        CompactorSettings,
        role=COMPACTOR,
        worker_id=LOCAL,
        embedder_dir=process.data_dir / "embedders",
    )
    return EmbeddedSettings(
        process=process,
        coordinator=replace(coordinator, coordinator_id=LOCAL),
        shard_node=replace(node, node_id=LOCAL, data_dir=process.data_dir / "node"),
        compactor=replace(compactor, worker_id=LOCAL, scratch_dir=process.data_dir / "compactor"),
    )


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of `host:port`; raises `AnnhealError` for anything else."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65_535:
        raise AnnhealError(f"{address!r} is not of the form host:port", reason="CONFIGURATION")
    return host, int(port)


def _unique(role: str) -> str:
    return f"{role}-{socket.gethostname()}-{os.getpid()}"
