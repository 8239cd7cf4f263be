"""Writes tests/golden/segment-v2: run once, when format 2 was fixed. Never run it again.

The files stay as they are for ever: every later version of Annheal has to open them. A change of
the format gets a new version, a new script and a new directory.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from annheal.segment.meta import FORMAT_VERSION
from tests.support.segments import sample_rows, write_sample

GOLDEN = Path(__file__).parent / "segment-v2"
ROWS = 150
VERSION = 2


def main() -> None:
    if GOLDEN.exists():
        sys.exit(f"{GOLDEN} exists and must not change")
    if FORMAT_VERSION != VERSION:
        sys.exit(f"this code writes format {FORMAT_VERSION}")
    entry = write_sample(GOLDEN, segment_id="golden-v2", rows=sample_rows(ROWS))
    (GOLDEN / "entry.json").write_bytes(msgspec.json.encode(entry))


if __name__ == "__main__":
    main()
