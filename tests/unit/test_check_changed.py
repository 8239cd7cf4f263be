"""`make check` runs the tests that look at what changed, and no others."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "check_changed.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_changed", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_files_are_named_as_they_are_imported(script: ModuleType) -> None:
    assert script.module_of("coordinator/placement/placement.py") == (
        "annheal.coordinator.placement.placement"
    )
    assert script.module_of("annheal/index/__init__.py") == "annheal.index"


def test_a_changed_module_asks_for_the_tests_that_import_it(script: ModuleType) -> None:
    found = script.tests_of({"coordinator/placement/placement.py"})
    assert "tests/unit/test_placement.py" in found
    assert "tests/unit/test_wal_codec.py" not in found


def test_names_taken_from_a_package_count(script: ModuleType) -> None:
    assert "tests/unit/test_index_quantized.py" in script.tests_of({"annheal/index/live.py"})


def test_a_changed_test_comes_first(script: ModuleType) -> None:
    found = script.tests_of({"tests/unit/test_wal_codec.py", "annheal/shards/wal.py"})
    assert found[0] == "tests/unit/test_wal_codec.py"


def test_prose_asks_for_nothing(script: ModuleType) -> None:
    assert script.tests_of({"README.md", "docs/limits.md"}) == []
