"""The client side of UDP over TCP: the datagrams of one association in one stream."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from logging import DEBUG
from typing import Protocol

from mtt.address import host_port
from mtt.errors import MttError, PeerError
from mtt.layers.base import Data, StreamProtocol, StreamTransport
from mtt.layers.parked import hand_over
from mtt.log import FAILURE_BURST, Throttle, logger
from mtt.observe.metrics import Counters
from mtt.wire import uot

# Limits of a `GoChannel`: datagrams that wait for the IPv6 stream, and seconds until the next
# attempt after its end.
MAX_WAITING = 16
IPV6_RETRY_TIME = 60.0


class Receiver(Protocol):
    """Receives the datagrams of a channel, such as an `Association`."""

    def deliver(self, host: str, port: int, payload: Data) -> None: ...
    def lost(self, error: Exception | None) -> None: ...


class UotChannel(StreamProtocol):
    """Protocol of a stream that carries UDP over TCP.

    Args:
        stream: the stream, parked; the channel owns it from now on.
        association: receives the datagrams.
        counters: counts the bytes.
    """

    __slots__ = ("_association", "_counters", "_decoder", "_drops", "_stream", "_write_paused")

    def __init__(self, stream: StreamTransport, association: Receiver, counters: Counters) -> None:
        self._stream = stream
        self._association: Receiver | None = association  # None at its end
        self._counters = counters
        self._decoder = uot.Decoder()
        self._write_paused = False  # the stream's back-pressure
        self._drops = Throttle(FAILURE_BURST)
        hand_over(stream, self)

    # Called by the association.

    def send(self, host: str, port: int, payload: bytes) -> None:
        if self._write_paused:
            self._drop(host, port, "the stream to the server is congested")
            return
        if not self._stream.half_closes():  # a Go server
            why = uot.unfit_for_go(host, port)
            if not why and len(payload) > uot.MAX_FOREIGN:
                why = f"{len(payload)} bytes; a Go server takes at most {uot.MAX_FOREIGN}"
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
        self._association = None
        self._stream.close()

    # The protocol of the stream.

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
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False

    def _lost(self, error: Exception | None) -> None:
        association, self._association = self._association, None
        if association is not None:
            association.lost(error)

    def _drop(self, host: str, port: int, why: str) -> None:
        where = host_port(host, port)
        self._drops.log(DEBUG, "a datagram to %s was dropped: %s", where, why)


class GoChannel:
    """A `UotChannel` for a Go server, with a second stream for IPv6 destinations.

    A Go server ends a stream if it cannot send one of its datagrams. A server without IPv6 ends the
    second stream for that reason, while the first one continues.

    Args:
        first: carries all other datagrams; the association ends with it.
        association: receives the datagrams.
        open_stream: opens the second stream.
        counters: counts the bytes.
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
        self._retry_at = 0.0

    # Called by the association.

    def send(self, host: str, port: int, payload: bytes) -> None:
        if ":" not in host:
            self._first.send(host, port, payload)
        elif self._second is not None:
            self._second.send(host, port, payload)
        elif _now() < self._retry_at:
            logger.debug("a datagram over IPv6 was dropped: the server ended its stream")
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

    # Called by the second channel.

    def deliver(self, host: str, port: int, payload: Data) -> None:
        self._association.deliver(host, port, payload)

    def lost(self, error: Exception | None) -> None:
        self._second = None
        self._retry_at = _now() + IPV6_RETRY_TIME


def _now() -> float:
    return asyncio.get_running_loop().time()
