"""UDP over TCP as AnyTLS servers have it: where its streams lead, and what Go servers need."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from mtt.errors import MttError
from mtt.layers.anytls_stream import ClientStream
from mtt.layers.base import Data
from mtt.log import logger
from mtt.metrics import Counters
from mtt.proxy.association import Association
from mtt.proxy.uot_channel import UotChannel
from mtt.wire import addresses, uot

# What the stream begins with. In the request no peer is named: datagrams go anywhere. The
# reference sends it with the first datagram, and cannot know until then whether there is UDP.
UOT_DESTINATION = addresses.encode(uot.MAGIC, 0) + uot.encode_request("0.0.0.0", 0, connect=False)

# Datagrams that wait for the stream for IPv6, and seconds until it is tried again after its end.
MAX_WAITING = 16
IPV6_REST = 60.0


class GoChannel:
    """A `UotChannel` for a Go server: datagrams to IPv6 addresses have a stream of their own.

    A Go server ends a stream over a datagram that it cannot send, and a server without IPv6 can
    send none of these. It ends the second stream then, and the first one goes on.

    Args:
        first: carries everything else; its end is that of the association.
        association: gets the datagrams that come.
        open_stream: makes the second stream.
        counters: where the bytes are counted.
    """

    def __init__(
        self,
        first: UotChannel,
        association: Association,
        open_stream: Callable[[], Awaitable[ClientStream]],
        counters: Counters,
    ) -> None:
        self._first = first
        self._association = association
        self._open_stream = open_stream
        self._counters = counters
        self._second: UotChannel | None = None
        self._opening: asyncio.Task[None] | None = None
        self._waiting: list[tuple[str, int, bytes]] = []  # for the second stream
        self._rests_until = 0.0

    # Called by the association.

    def send(self, host: str, port: int, payload: bytes) -> None:
        if ":" not in host:
            self._first.send(host, port, payload)
        elif self._second is not None:
            self._second.send(host, port, payload)
        elif _now() < self._rests_until:
            logger.debug("a datagram by IPv6 was dropped: the server ended the stream for them")
        elif len(self._waiting) < MAX_WAITING:
            self._waiting.append((host, port, payload))
            if self._opening is None:
                self._opening = asyncio.get_running_loop().create_task(self._open())

    def close(self) -> None:
        self._first.close()
        if self._second is not None:
            self._second.close()
        if self._opening is not None:
            self._opening.cancel()

    async def _open(self) -> None:
        try:
            stream = await self._open_stream()
        except MttError as error:
            self.lost(error)
        else:
            self._second = UotChannel(stream, self, self._counters)
            for datagram in self._waiting:
                self._second.send(*datagram)
        finally:
            self._waiting.clear()
            self._opening = None

    # Called by the second channel, as by that of an association.

    def deliver(self, host: str, port: int, payload: Data) -> None:
        self._association.deliver(host, port, payload)

    def lost(self, error: Exception | None) -> None:
        self._second = None
        self._rests_until = _now() + IPV6_REST


def _now() -> float:
    return asyncio.get_running_loop().time()
