"""Files of a data directory that other programs read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

ADDRESS_FILE: Final = "address"


@contextmanager
def published_address(data_dir: Path, address: str) -> Iterator[None]:
    """Keep `address` in a file of the data directory, for scripts: whole, or not there."""
    path = data_dir / ADDRESS_FILE
    temporary = path.with_suffix(".tmp")
    temporary.write_text(f"{address}\n")
    temporary.replace(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
