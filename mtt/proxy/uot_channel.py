"""UDP over TCP where it begins: the datagrams of one association, in one stream."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from logging import DEBUG
from typing import Any, Protocol

from mtt.address import host_port
from mtt.errors import MttError, PeerError
from mtt.layers.base import Data, StreamProtocol, StreamTransport
from mtt.layers.parked import hand_over
from mtt.log import FAILURE_BURST, Throttle, logger
from mtt.observe.metrics import Counters
from mtt.wire import uot

# Of a `GoChannel`: datagrams that wait for the stream for IPv6, and seconds until it is tried again
# after its end.
MAX_WAITING = 16
IPV6_REST = 60.0


class Receiver(Protocol):
    """What gets the datagrams of a channel: an `Association`, as a rule."""

    def deliver(self, host: str, port: int, payload: Data) -> None: ...
    def lost(self, error: Exception | None) -> None: ...


class UotChannel(StreamProtocol):
    """The protocol of a stream that carries UDP over TCP, which it takes over.

    Args:
        stream: held; ours from now on.
        association: gets the datagrams that come.
        counters: where the bytes are counted.
    """

    __slots__ = ("_association", "_clogged", "_counters", "_decoder", "_drops", "_stream")

    def __init__(self, stream: StreamTransport, association: Receiver, counters: Counters) -> None:
        self._stream = stream
        self._association: Receiver | None = association  # until it is over
        self._counters = counters
        self._decoder = uot.Decoder()
        self._clogged = False  # the stream does not take any more
        self._drops = Throttle(FAILURE_BURST)
        hand_over(stream, self)

    # Called by the association.

    def send(self, host: str, port: int, payload: bytes) -> None:
        """Carry a datagram, or drop it."""
        if self._clogged:
            self._drop(host, port, "the server does not take them")
            return
        if not self._stream.half_closes():  # the server is not ours
            why = uot.unfit_for_go(host, port)
            if not why and len(payload) > uot.MAX_FOREIGN:
                why = f"a Go server takes {uot.MAX_FOREIGN} bytes, not {len(payload)}"
            if why:
                self._drop(host, port, why)
                return
        try:
            datagram = uot.encode_datagram(payload, host, port)
        except ValueError as error:
            self._drop(host, port, str(error))
            return
        self._counters.bytes_up += len(payload)
        self._stream.write(datagram)

    def close(self) -> None:
        """The association is over."""
        self._association = None
        self._stream.close()

    # The protocol of the stream.

    def connection_made(self, transport: Any) -> None:
        """We know it already."""

    def data_received(self, data: Data) -> None:
        association = self._association
        if association is None:
            return
        try:
            datagrams = self._decoder.feed(data)
        except uot.UotError as error:
            self._association = None
            self._stream.abort()
            association.lost(PeerError(f"UDP over TCP: {error}"))
            return
        for host, port, payload in datagrams:
            self._counters.bytes_down += len(payload)
            association.deliver(host, port, payload)

    def eof_received(self) -> bool:
        self._lost(None)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost(exc)

    def pause_writing(self) -> None:
        self._clogged = True

    def resume_writing(self) -> None:
        self._clogged = False

    def _lost(self, error: Exception | None) -> None:
        association, self._association = self._association, None
        if association is not None:
            association.lost(error)

    def _drop(self, host: str, port: int, why: str) -> None:
        where = host_port(host, port)
        self._drops.log(DEBUG, "a datagram to %s was dropped: %s", where, why)


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
        association: Receiver,
        open_stream: Callable[[], Awaitable[StreamTransport]],
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
