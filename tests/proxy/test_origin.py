"""Idle connections to origin servers."""

from __future__ import annotations

from mtt.proxy.origin import IdleOrigins, Origin
from tests.support.transports import FakeTransport, turns


async def test_idle_origin_is_read_after_client_back_pressure() -> None:
    transport = FakeTransport()
    origin = Origin(transport, ("a.test", 80))
    transport.pause_reading()  # back-pressure of the client
    origins = IdleOrigins()
    origins.keep(origin)
    assert transport.reading
    transport.lose(None)
    await turns()
    assert origins.take(("a.test", 80), idempotent=True) is None
