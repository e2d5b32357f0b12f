"""Fixtures for tests of the multi-user server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.workers import Echo


@pytest.fixture
def echo() -> Iterator[Echo]:
    there = Echo()
    yield there
    there.close()
