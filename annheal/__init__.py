"""Annheal: the shared library of its services, and the client SDK.

What it offers is loaded when it is first used, so that a server does not pay for the client, and
a command not for reading the version of a package.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from annheal import errors
    from annheal.client import AsyncClient, Client

    __version__: str

__all__ = ["AsyncClient", "Client", "__version__", "errors"]


def __getattr__(name: str) -> Any:
    if name in ("AsyncClient", "Client"):
        return getattr(import_module("annheal.client"), name)
    if name == "errors":
        return import_module("annheal.errors")
    if name == "__version__":
        version: str = import_module("importlib.metadata").version("annheal")
        return version
    raise AttributeError(f"module 'annheal' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
