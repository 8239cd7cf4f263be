"""Opens the object store that a URL names."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from annheal.errors import InvalidArgument
from annheal.objectstore.keys import check_key
from annheal.objectstore.local import LocalObjectStore
from annheal.objectstore.protocol import ObjectStore
from annheal.runtime.host.secrets import mask_userinfo

_FIELD = "object_store"
_S3_OPTIONS = ("endpoint", "region", "allow_http", "virtual_hosted")
_BOOLEANS = {"true": True, "false": False}


def open_object_store(url: str) -> ObjectStore:
    """Open `/path`, `file:///path` or `s3://bucket/prefix?options`.

    Options of S3: `endpoint` (its base address; AWS without it), `region`, `allow_http=true`
    (needed for an `http://` endpoint), `virtual_hosted=true`. Credentials come from the standard
    `AWS_*` environment, never from the URL. Raises `InvalidArgument` for anything else.
    """
    if "://" not in url:
        return _open_local(url, url)
    parts = urlsplit(url)
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
            raise InvalidArgument.of(
                _FIELD, f"{mask_userinfo(url)!r} is not of the form file:///path"
            )
        return _open_local(unquote(parts.path), url)
    if parts.scheme == "s3":
        return _open_s3(parts)
    raise InvalidArgument.of(
        _FIELD,
        f"scheme {parts.scheme!r} is not known: give a path, file:///path or s3://bucket/prefix",
    )


def local_folders(url: str) -> tuple[Path, ...]:
    """Return the folder of a store that is a directory; nothing for any other."""
    if "://" not in url:
        return (Path(url),)
    parts = urlsplit(url)
    return (Path(unquote(parts.path)),) if parts.scheme == "file" else ()


def _open_local(path: str, url: str) -> ObjectStore:
    if not path or "\0" in path:
        raise InvalidArgument.of(_FIELD, f"{mask_userinfo(url)!r} names no directory")
    return LocalObjectStore(Path(path))


def _open_s3(parts: SplitResult) -> ObjectStore:
    if not parts.netloc or "@" in parts.netloc or ":" in parts.netloc or parts.fragment:
        raise InvalidArgument.of(
            _FIELD,
            "an S3 URL is s3://bucket/prefix?options; credentials belong in AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, an address in the option endpoint",
        )
    options = _parse_options(parts.query)
    prefix = parts.path.strip("/")
    if prefix:
        check_key(prefix)
    endpoint = options.get("endpoint")
    allow_http = _parse_boolean(options, "allow_http")
    if endpoint is not None:
        _check_endpoint(endpoint, allow_http=allow_http)

    # A process that stores in a directory need not load obstore and its runtime.
    from annheal.objectstore.s3 import S3ObjectStore, S3Settings

    return S3ObjectStore(
        S3Settings(
            bucket=parts.netloc,
            prefix=prefix,
            endpoint=endpoint,
            region=options.get("region"),
            allow_http=allow_http,
            virtual_hosted=_parse_boolean(options, "virtual_hosted"),
        )
    )


def _parse_options(query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in _S3_OPTIONS or name in options or not value:
            raise InvalidArgument.of(
                _FIELD,
                f"option {name!r} is unknown, empty or given twice; there are "
                f"{', '.join(_S3_OPTIONS)}",
            )
        options[name] = value
    return options


def _parse_boolean(options: dict[str, str], name: str) -> bool:
    value = options.get(name, "false")
    if value not in _BOOLEANS:
        raise InvalidArgument.of(_FIELD, f"option {name} must be true or false, not {value!r}")
    return _BOOLEANS[value]


def _check_endpoint(endpoint: str, *, allow_http: bool) -> None:
    parts = urlsplit(endpoint)
    if "@" in parts.netloc:
        raise InvalidArgument.of(_FIELD, "the endpoint must not carry credentials")
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise InvalidArgument.of(_FIELD, f"endpoint {endpoint!r} is no http(s) address")
    if parts.scheme == "http" and not allow_http:
        raise InvalidArgument.of(
            _FIELD, f"endpoint {endpoint!r} is not encrypted: use https, or set allow_http=true"
        )
