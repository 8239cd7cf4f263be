"""What `annheal export` writes and `annheal import` restores (docs/formats/export.md)."""

from __future__ import annotations

from annheal.cli.exports.description import (
    DESCRIPTION_FILE,
    ExportDescription,
    ExportFormat,
    ExportPart,
    find_export,
)

__all__ = ["DESCRIPTION_FILE", "ExportDescription", "ExportFormat", "ExportPart", "find_export"]
