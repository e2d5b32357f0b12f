"""Detects v2ray-plugin's mux by the first bytes of a WebSocket's data.

Clients with mux and clients with a plain stream both name no subprotocol. A client with mux sends
its first frame at once, because it connects to open a stream. A plain client may wait for a
destination that speaks first. So without data for some time, the client has no mux.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from mtt.layers.base import Data, StreamTransport
from mtt.layers.parked import Parked

# Seconds to wait for a client's first data. v2ray-plugin sends it up to 100 ms after the upgrade;
# the rest is for a round trip, or the retransmission of a packet.
FIRST_TIME = 1.0


class MuxCoolDetector(Parked):
    """The protocol of a WebSocket until the detection is complete.

    Args:
        is_head: whether data is the beginning of Mux.Cool; None: more is needed.
        waiting: called with the transport when the wait begins.
        known: called once with the transport, parked, and whether it carries Mux.Cool.
        lost: called with the transport if it is lost before.
    """

    __slots__ = ("_is_head", "_known", "_lost", "_timer", "_waiting")

    def __init__(
        self,
        is_head: Callable[[bytes], bool | None],
        *,
        waiting: Callable[[StreamTransport], object],
        known: Callable[[StreamTransport, bool], None],
        lost: Callable[[StreamTransport], object],
    ) -> None:
        super().__init__()
        self._is_head = is_head
        self._waiting = waiting
        self._known: Callable[[StreamTransport, bool], None] | None = known
        self._lost = lost
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_settled(self) -> bool:
        """Whether the detection is complete."""
        return self._known is None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._waiting(transport)
        self._timer = asyncio.get_running_loop().call_later(FIRST_TIME, self._settle, False)

    def data_received(self, data: Data) -> None:
        if self._known is None:
            super().data_received(data)
            return
        self.early += data
        is_mux = self._is_head(self.early)
        if is_mux is not None:
            self._settle(is_mux)

    def eof_received(self) -> bool:
        result = super().eof_received()
        self._settle(False)
        return result

    def connection_lost(self, exc: Exception | None) -> None:
        transport = self.transport
        if self._known is not None and transport is not None:
            self._known = None
            self._stop()
            self._lost(transport)
        super().connection_lost(exc)

    def _settle(self, is_mux: bool) -> None:
        known, self._known = self._known, None
        transport = self.transport
        if known is not None and transport is not None:
            self._stop()
            if self.early:
                transport.pause_reading()
            known(transport, is_mux)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
