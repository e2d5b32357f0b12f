"""What all tests with real programs use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.real.destinations import Site


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """An HTTP server as the destination of tunnels."""
    with Site() as running:
        yield running
