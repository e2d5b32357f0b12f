"""Connections to V2Ray's servers with the first data of the stream in the request."""

from __future__ import annotations

from collections.abc import Callable

from mtt.layers.base import StreamTransport
from mtt.outbound.connector import Connector, Finish
from mtt.outbound.upstream import Upstream


class EarlyDataUpstream(Upstream):
    """Makes a new connection for each stream, and never sends data twice.

    Args:
        connector: makes the connections.
        upgrade: returns the upgrade that carries the given data.
        limit: bytes that a request carries.
        on_lost: called with the error when a stream ends; None after an orderly end.
    """

    is_multiplexed = False

    def __init__(
        self,
        connector: Connector,
        upgrade: Callable[[bytes], Finish],
        limit: int,
        *,
        on_lost: Callable[[Exception | None], object],
    ) -> None:
        self._connector = connector
        self._upgrade = upgrade
        self.early_data = limit
        self._on_lost = on_lost

    def open_at_once(self) -> None:
        return None

    async def open(self) -> StreamTransport:
        return await self.open_with(b"")

    async def open_with(self, data: bytes) -> StreamTransport:
        return await self._connector.connect(finish=self._upgrade(data))

    def ended(self, error: Exception | None) -> None:
        self._on_lost(error)

    async def close(self) -> None:
        pass
