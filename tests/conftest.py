"""Fixtures that several folders of tests share live in `tests/support`."""

from __future__ import annotations

import pytest

pytest_plugins = ("tests.support.s3_server",)

# Contract suites are imported by the tests, and pytest explains only asserts that it rewrote.
pytest.register_assert_rewrite("tests.contract.object_store_contract")
