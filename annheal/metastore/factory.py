"""Opens the metadata store that a URL names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from annheal.errors import InvalidArgument
from annheal.metastore.protocol import MetaStore
from annheal.metastore.sqlite import SqliteMetaStore
from annheal.runtime.host.secrets import mask_userinfo

ENV_ETCD_USER = "ANNHEAL_ETCD_USER"
ENV_ETCD_PASSWORD = "ANNHEAL_ETCD_PASSWORD"
_DEFAULT_CLUSTER = "annheal"
_ETCD_PORT = 2379
_ETCD_OPTIONS = frozenset({"ca", "cert", "key"})


def open_meta_store(url: str, *, environ: Mapping[str, str] = os.environ) -> MetaStore:
    """Return the store named by `url`; connections are made when it is first used.

    * ``sqlite:///var/lib/annheal/meta.db``: a file, by absolute path.
    * ``etcd://host:2379,host:2379/cluster``: keys lie under ``/annheal/<cluster>/``.
      ``etcds://`` speaks TLS, and so does ``etcd://`` with any of ``?ca=FILE&cert=FILE&key=FILE``.
      User and password come from the URL (``user:password@``, percent-encoded) or from
      ``ANNHEAL_ETCD_USER`` and ``ANNHEAL_ETCD_PASSWORD``.

    Raises `InvalidArgument` when the URL cannot be understood or a file it names not be read.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        # Not `from error`: its text may hold the login.
        raise InvalidArgument.of("url", f"not a URL: {mask_userinfo(str(error))}") from None
    if parts.scheme == "sqlite":
        return _open_sqlite(parts)
    if parts.scheme in ("etcd", "etcds"):
        return _open_etcd(parts, environ)
    raise InvalidArgument.of("url", f"unknown scheme {parts.scheme!r}: use sqlite, etcd or etcds")


def _open_sqlite(parts: SplitResult) -> MetaStore:
    if parts.netloc or parts.query or len(parts.path) < 2:
        raise InvalidArgument.of("url", "write sqlite:///absolute/path/to/file")
    return SqliteMetaStore(Path(unquote(parts.path)))


def _open_etcd(parts: SplitResult, environ: Mapping[str, str]) -> MetaStore:
    # Imported here so that embedded mode does not load gRPC for its metadata.
    from annheal.metastore.etcd import EtcdMetaStore, EtcdTls, EtcdUser

    if "@" in parts.path + parts.query + parts.fragment:
        raise InvalidArgument.of(
            "url", "an @ stands behind the hosts; write / ? # of a user or password as %2F %3F %23"
        )
    login, _, hosts = parts.netloc.rpartition("@")
    options = _options(parts.query)
    tls = None
    if parts.scheme == "etcds" or options:
        tls = EtcdTls(**{name: _read_file(name, path) for name, path in options.items()})
    name, _, password = login.partition(":")
    name = unquote(name) or environ.get(ENV_ETCD_USER, "")
    password = unquote(password) or environ.get(ENV_ETCD_PASSWORD, "")
    return EtcdMetaStore(
        [_endpoint(host) for host in hosts.split(",")],
        prefix=_key_prefix(unquote(parts.path).strip("/") or _DEFAULT_CLUSTER),
        tls=tls,
        user=EtcdUser(name=name, password=password) if name else None,
    )


def _key_prefix(cluster: str) -> str:
    return f"/annheal/{cluster}/"


def _options(query: str) -> dict[str, str]:
    options = dict(parse_qsl(query, keep_blank_values=True))
    unknown = options.keys() - _ETCD_OPTIONS
    if unknown:
        raise InvalidArgument.of("url", f"unknown options: {', '.join(sorted(unknown))}")
    if ("cert" in options) != ("key" in options):
        raise InvalidArgument.of("url", "cert and key go together")
    return options


def _read_file(name: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidArgument.of("url", f"{name} cannot be read: {error}") from error


def _endpoint(host: str) -> str:
    if not host:
        raise InvalidArgument.of("url", "write etcd://host:port,host:port/cluster")
    has_port = host.rpartition(":")[2].isdecimal() and not host.endswith("]")
    return host if has_port else f"{host}:{_ETCD_PORT}"
