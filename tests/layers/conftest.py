"""Fixtures for tests of the layers."""

from __future__ import annotations

import pytest

from mtt.layers import linger
from tests.support.stacks import STACKS, Stack


@pytest.fixture(params=STACKS, ids=lambda stack: stack.name)
def stack(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Stack:
    """Every stack of layers, one after the other."""
    # Both ends close in these tests: what waits for this time does not see the other one's end.
    monkeypatch.setattr(linger, "LINGER_TIME", 1000.0)
    chosen: Stack = request.param
    return chosen
