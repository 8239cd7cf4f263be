"""What a server gives its embedders: the keys of endpoints, and a folder of models.

A collection names keys and models; where they lie is for the operator to say. Nothing outside
`folder` is read, and of the environment only variables that begin with `ANNHEAL_EMBEDDER_KEY`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from annheal.errors import FailedPrecondition
from annheal.model.texts.spec import EmbedderSpec

KEY_BYTES_MAX: Final = 16_384
KEYS_FOLDER: Final = "keys"
MODELS_FOLDER: Final = "models"


@dataclass(frozen=True, slots=True)
class EmbedderHost:
    """The surroundings of one process.

    Attributes:
        folder: has `keys/` and `models/`; None: collections can name neither.
        url_prefixes: endpoints may be at addresses that begin with one of these; empty: anywhere.
        environ: the environment.
        nice: steps by which the threads of local models have a lower priority, 0 to 19.
    """

    folder: Path | None = None
    url_prefixes: tuple[str, ...] = ()
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)
    nice: int = 0

    def key(self, spec: EmbedderSpec) -> str:
        """Return the key that `spec` names, empty when it names none. Reads a file, perhaps.

        Raises `FailedPrecondition` when there is no such key; the message never holds one.
        """
        if spec.key_env:
            key = self.environ.get(spec.key_env, "")
            where = f"variable {spec.key_env} of the server's environment"
        elif spec.key_file:
            path = self._below(KEYS_FOLDER, spec.key_file, what="the file of a key")
            key, where = _read_key(path), f"file {path}"
        else:
            return ""
        key = key.strip()
        if not key:
            raise _no_key(f"{where} is not set or empty")
        if not key.isascii() or not key.isprintable():
            raise _no_key(f"{where} holds characters that no key of HTTP has")
        return key

    def model_folder(self, spec: EmbedderSpec) -> Path:
        """Return the folder of the model that `spec` names; whether it exists is not looked at."""
        return self._below(MODELS_FOLDER, spec.folder, what="the folder of a model")

    def allows(self, url: str) -> bool:
        """Tell whether an endpoint may be at `url`."""
        return not self.url_prefixes or any(
            f"{url.rstrip('/')}/".startswith(f"{prefix.rstrip('/')}/")
            for prefix in self.url_prefixes
        )

    def _below(self, part: str, name: str, *, what: str) -> Path:
        if self.folder is None:
            raise FailedPrecondition(
                f"the collection names {what}, {name!r}, but this server has no folder of"
                " embedders: set embedder_dir",
                reason="NO_EMBEDDER_FOLDER",
            )
        return self.folder / part / name


def _read_key(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(KEY_BYTES_MAX).decode("utf-8", "replace")
    except OSError as error:
        raise _no_key(f"file {path}: {error.strerror}") from error


def _no_key(text: str) -> FailedPrecondition:
    return FailedPrecondition(f"no key for the embedder: {text}", reason="EMBEDDER_KEY_MISSING")
