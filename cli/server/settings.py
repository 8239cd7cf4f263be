"""Settings of the server roles: flags over environment over file over defaults.

A setting is a field of a role's frozen settings dataclass; its key is the field's name. It is
written `key = value` in TOML (at the top for all roles, or in a table named after one role),
`ANNHEAL_KEY=value` in the environment, and `--set key=value` on the command line. One file and
one environment may serve all roles: a key that only another role knows is accepted and left
alone; a key that no role knows is refused with the closest one that exists.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar, cast, get_type_hints

import msgspec

from annheal.cli.exit_codes import CONFIGURATION
from annheal.errors import AnnhealError, FieldViolation, InvalidArgument
from annheal.model.texts.spec import KEY_VARIABLE_PREFIX
from annheal.runtime.host.secrets import mask_userinfo
from annheal.runtime.logging import LEVELS
from annheal.runtime.metrics_endpoint import split_listen

ENV_PREFIX: Final = "ANNHEAL_"
ENV_CONFIG: Final = "ANNHEAL_CONFIG"
CONFIG_BYTES_MAX: Final = 1 << 20
CLIENT_VARIABLES: Final = frozenset(
    {
        ENV_CONFIG,
        "ANNHEAL_ADDRESS",
        "ANNHEAL_OUTPUT",
        "ANNHEAL_TIMEOUT_S",
        "ANNHEAL_ETCD_USER",
        "ANNHEAL_ETCD_PASSWORD",
        "ANNHEAL_UPDATE_GOLDEN",
        "ANNHEAL_FAIL_POINT",
    }
)
"""Variables with the prefix that are no settings of a role."""

_EXAMPLES: Final = {
    "metadata_url": "etcd://HOST:2379/CLUSTER, or sqlite:///PATH on one machine",
    "object_store_url": "s3://BUCKET/PREFIX, or file:///PATH on one machine",
}
_SECRET_PARTS: Final = ("password", "secret", "token", "credential", "api_key")

SettingsT = TypeVar("SettingsT")


@dataclass(frozen=True, slots=True)
class ProcessSettings:
    """What every server process needs, whatever its role.

    `node_id` names the process, in all roles. `metadata_url` and `object_store_url` are required
    by `annheal serve`; `annheal up` keeps both below `data_dir`. `metrics_listen` is where
    Prometheus scrapes the process, `host:port`; empty: nowhere. `kernel_cache` is where compiled
    kernels are kept, for all processes of a user; None: in the user's cache directory.
    """

    node_id: str = ""
    metadata_url: str = dataclasses.field(default="", repr=False)
    object_store_url: str = dataclasses.field(default="", repr=False)
    data_dir: Path = Path("annheal-data")
    log_level: str = "info"
    metrics_listen: str = ""
    kernel_cache: Path | None = None

    def __post_init__(self) -> None:
        if self.log_level not in LEVELS:
            raise InvalidArgument.of("log_level", f"must be one of {', '.join(LEVELS)}")
        if self.metrics_listen:
            split_listen(self.metrics_listen)


@dataclass(frozen=True, slots=True)
class Given:
    """A value as somebody gave it; `source` says where, for messages."""

    value: object = dataclasses.field(repr=False)
    source: str
    from_text: bool


class SettingsSource:
    """Everything that was given, checked against all keys that exist.

    Args:
        roles: role name (a table of the file) to the dataclasses that hold its settings.
        flags: key to text, from the command line.
        environ: the process's environment.
        config: the TOML file; None means `ANNHEAL_CONFIG`, or no file.

    Raises:
        InvalidArgument: a key is unknown, or the file cannot be read or parsed.
    """

    def __init__(
        self,
        roles: Mapping[str, Sequence[type[Any]]],
        *,
        flags: Mapping[str, str],
        environ: Mapping[str, str] = os.environ,
        config: Path | None = None,
    ) -> None:
        self._known = {
            role: frozenset(key for kind in kinds for key in setting_keys(kind))
            for role, kinds in roles.items()
        }
        every = frozenset().union(*self._known.values())
        self._flags = {
            _known_key(key, every, source=f"--set {key}"): Given(value, f"--set {key}", True)
            for key, value in flags.items()
        }
        self._environ = dict(_read_environ(environ, every))
        path = config or (Path(environ[ENV_CONFIG]) if environ.get(ENV_CONFIG) else None)
        self._file: dict[str, Given] = {}
        self._tables: dict[str, dict[str, Given]] = {}
        if path is not None:
            self._read_file(path, every)

    def settings(self, kind: type[SettingsT], *, role: str, **defaults: object) -> SettingsT:
        """Return `kind` filled for `role`; `defaults` stand in for the dataclass's own."""
        sources: dict[str, str] = {}
        missing: list[str] = []
        try:
            built = self._build(
                kind, role=role, prefix="", defaults=defaults, sources=sources, missing=missing
            )
        except InvalidArgument as error:
            raise error if error.reason == CONFIGURATION else _located(error, sources) from error
        except ValueError as error:
            raise _refusal(f"settings of {role}: {error}") from error
        return built

    def _build(
        self,
        kind: type[SettingsT],
        *,
        role: str,
        prefix: str,
        defaults: Mapping[str, object],
        sources: dict[str, str],
        missing: list[str],
    ) -> SettingsT:
        hints = get_type_hints(kind)
        values: dict[str, Any] = {}
        for field in dataclasses.fields(kind):  # type: ignore[arg-type]
            hint, key = hints[field.name], prefix + field.name
            if dataclasses.is_dataclass(hint):
                values[field.name] = self._build(
                    cast("type[Any]", hint),
                    role=role,
                    prefix=f"{key}_",
                    defaults={},
                    sources=sources,
                    missing=missing,
                )
                continue
            given = self._find(key, role)
            if given is not None:
                sources[field.name] = given.source
                values[field.name] = _convert(key, given, hint)
            elif field.name in defaults:
                values[field.name] = defaults[field.name]
            elif (
                field.default is dataclasses.MISSING
                and field.default_factory is dataclasses.MISSING
            ):
                missing.append(key)
        if missing:
            raise _missing(missing)
        return kind(**values)

    def _find(self, key: str, role: str) -> Given | None:
        for layer in (self._flags, self._environ, self._tables.get(role, {}), self._file):
            if key in layer:
                return layer[key]
        return None

    def _read_file(self, path: Path, every: frozenset[str]) -> None:
        for key, value in _parse_file(path).items():
            if isinstance(value, dict):
                role = key.replace("_", "-")
                if role not in self._known:
                    raise _unknown(
                        f"[{key}]", role, self._known, source=f"{path}", noun="table (a role)"
                    )
                known = self._known[role]
                self._tables[role] = {
                    _known_key(name, known, source=f"{path} [{key}]"): Given(
                        inner, f"{path} [{key}]", False
                    )
                    for name, inner in value.items()
                }
            else:
                _known_key(key, every, source=str(path))
                self._file[key] = Given(value, str(path), False)


def require(settings: ProcessSettings, *names: str) -> None:
    """Raise `InvalidArgument` when one of the named settings is empty."""
    missing = [name for name in names if not getattr(settings, name)]
    if missing:
        raise _missing(missing)


def setting_keys(kind: type[Any], *, prefix: str = "") -> list[str]:
    """Return the keys of a settings dataclass; those of a dataclass inside it get its field's name.

    `compaction: CompactionSettings` with a field `ratio` gives the key `compaction_ratio`.
    """
    hints = get_type_hints(kind)
    keys: list[str] = []
    for field in dataclasses.fields(kind):
        hint, key = hints[field.name], prefix + field.name
        if dataclasses.is_dataclass(hint):
            keys += setting_keys(cast("type[Any]", hint), prefix=f"{key}_")
        else:
            keys.append(key)
    return keys


def format_settings(*parts: object) -> str:
    """Return the settings as TOML, secrets left out; later parts do not repeat earlier keys."""
    values: dict[str, object] = {}
    for part in parts:
        for key, value in _flat(part):
            values.setdefault(key, value)
    return "\n".join(_line(key, value) for key, value in values.items())


def _flat(part: Any, *, prefix: str = "") -> Iterable[tuple[str, object]]:
    for field in dataclasses.fields(part):
        value, key = getattr(part, field.name), prefix + field.name
        if dataclasses.is_dataclass(value):
            yield from _flat(value, prefix=f"{key}_")
        else:
            yield key, value


def _line(key: str, value: object) -> str:
    if value is None:
        return f"# {key} is not set"
    if any(word in key for word in _SECRET_PARTS):
        return f'{key} = "***"'
    return f"{key} = {_toml(mask_userinfo(value) if isinstance(value, str) else value)}"


def parse_assignments(assignments: Iterable[str]) -> dict[str, str]:
    """Return `key=value` texts as a mapping; the last of equal keys wins."""
    result: dict[str, str] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise _refusal(f"--set: {mask_userinfo(text)!r} is not of the form key=value")
        result[key.strip().replace("-", "_")] = value.strip()
    return result


def _parse_file(path: Path) -> dict[str, Any]:
    try:
        content = path.read_bytes()
    except OSError as error:
        reason = error.strerror or error
        raise _refusal(f"--config: {path} cannot be read: {reason}") from error
    if len(content) > CONFIG_BYTES_MAX:
        raise _refusal(f"--config: {path} is larger than {CONFIG_BYTES_MAX} bytes")
    try:
        return tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise _refusal(f"--config: {path} is not TOML: {error}") from error


def _read_environ(environ: Mapping[str, str], every: frozenset[str]) -> Iterable[tuple[str, Given]]:
    for name, value in sorted(environ.items()):
        if not name.startswith(ENV_PREFIX) or name in CLIENT_VARIABLES:
            continue
        if name.startswith(KEY_VARIABLE_PREFIX):
            continue  # keys of embedders, which collections name
        key = name.removeprefix(ENV_PREFIX).lower()
        if key not in every:
            raise _unknown(
                name,
                name,
                [f"{ENV_PREFIX}{k.upper()}" for k in every] + sorted(CLIENT_VARIABLES),
                source="the environment",
            )
        yield key, Given(value, name, True)


def _known_key(key: str, known: frozenset[str], *, source: str) -> str:
    if key not in known:
        raise _unknown(key, key, known, source=source)
    return key


def _unknown(
    shown: str, key: str, known: Iterable[str], *, source: str, noun: str = "setting"
) -> InvalidArgument:
    close = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(sorted(known))}"
    return _refusal(f"{source}: unknown {noun} {shown}; {hint}")


def _convert(key: str, given: Given, hint: Any) -> object:
    value = given.value
    if given.from_text and _is_tuple(hint):
        value = [part.strip() for part in str(value).split(",") if part.strip()]
    elif given.from_text and hint is bool:
        value = str(value).lower()
    try:
        return msgspec.convert(value, hint, strict=not given.from_text, dec_hook=_decode)
    except (msgspec.ValidationError, ValueError) as error:
        raise _refusal(f"{given.source}: {key}: {error}") from error


def _decode(kind: type[Any], value: object) -> object:
    if kind in (Path, Path | None) and isinstance(value, str):
        if not value:
            raise ValueError("must not be empty")
        return Path(value)
    raise ValueError(f"a {getattr(kind, '__name__', kind)} is expected")


def _is_tuple(hint: object) -> bool:
    return getattr(hint, "__origin__", None) is tuple


def _located(error: AnnhealError, sources: Mapping[str, str]) -> InvalidArgument:
    violations = getattr(error, "violations", ())
    where = [sources[v.field] for v in violations if v.field in sources]
    prefix = f"{', '.join(where)}: " if where else ""
    return _refusal(f"{prefix}{error.message}", violations=violations)


def _missing(names: Sequence[str]) -> InvalidArgument:
    return _refusal(
        f"settings without a value: {', '.join(names)}",
        violations=[FieldViolation(name, _how_to_set(name)) for name in names],
    )


def _refusal(message: str, *, violations: Sequence[FieldViolation] = ()) -> InvalidArgument:
    return InvalidArgument(mask_userinfo(message), violations=violations, reason=CONFIGURATION)


def _how_to_set(name: str) -> str:
    return (
        f"give --{name.replace('_', '-')} or {ENV_PREFIX}{name.upper()} in the environment, or set"
        f" {name} in the TOML file{_example(name)}"
    )


def _example(name: str) -> str:
    example = _EXAMPLES.get(name)
    return f"; for example {example}" if example else ""


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, tuple | list):
        return f"[{', '.join(_toml(inner) for inner in value)}]"
    return msgspec.json.encode(str(value)).decode()
