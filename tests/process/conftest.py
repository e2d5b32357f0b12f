"""Fixtures for tests of processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.programs import require_package
from tests.support.workers import Echo


@pytest.fixture(params=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name == "uvloop":
        require_package("uvloop")
    return name


@pytest.fixture
def echo() -> Iterator[Echo]:
    there = Echo()
    yield there
    there.close()
