"""Parked connections: their owner has not decided yet what to do with them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from mtt.errors import NetworkError, again
from mtt.layers.base import Data, StreamProtocol, StreamTransport


class Parked(StreamProtocol):
    """The protocol of a parked connection: keeps what comes until another protocol takes over.

    That is `hand_over()` or, for several at a time, `take_over()`. Most connections say nothing
    before, so reading goes on, and only the first data pause it: pausing and resuming each one
    would cost four system calls. A connection that dies meanwhile shows in
    `transport.is_closing()` and `error`.

    Args:
        ready: called with the transport when the layers below are up. Without it, `await` the
            transport with `opened()`.
        failed: called if they fail instead, or never come up.

    Attributes:
        left: called if the connection is cut later, or is over.
    """

    __slots__ = ("_opened", "_ready", "early", "eof", "error", "failed", "left", "transport")

    def __init__(
        self,
        ready: Callable[[StreamTransport], None] | None = None,
        failed: Callable[[Exception], None] | None = None,
    ) -> None:
        self._ready = ready
        self.failed = failed
        self.left: Callable[[], object] | None = None
        self._opened: asyncio.Future[StreamTransport | None] | None = None  # None: it failed
        self.transport: StreamTransport | None = None
        self.error: Exception | None = None
        self.early = b""
        self.eof = False

    async def opened(self) -> StreamTransport:
        """Wait for the transport. Raises the layer's PeerError or NetworkError if it fails."""
        transport = self.transport
        if transport is None and self.error is None:
            self._opened = asyncio.get_running_loop().create_future()
            transport = await self._opened
        if transport is None:
            assert self.error is not None
            raise again(self.error)
        return transport

    @property
    def is_cut(self) -> bool:
        """Whether the connection died before its peer had said all it had to say, or by a reset:
        who resets does not want any of it to go on."""
        error = self.error
        return isinstance(error, ConnectionResetError) or (error is not None and not self.eof)

    @property
    def is_over(self) -> bool:
        """Whether nothing is to be carried: the peer has ended both directions, without a byte."""
        transport = self.transport
        return (
            self.eof and not self.early and transport is not None and not transport.half_closes()
        )

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        ready, self._ready, self.failed = self._ready, None, None
        if ready is not None:
            ready(transport)
        elif self._opened is not None and not self._opened.done():
            self._opened.set_result(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.error = exc or NetworkError("connection closed")
        # These refer to what refers to us.
        transport, self.transport = self.transport, None
        failed, self._ready, self.failed = self.failed, None, None
        left, self.left = self.left, None
        if transport is not None:
            transport.set_protocol(self)  # for those who take it over now
            if left is not None and self.is_cut:
                left()
        elif failed is not None:
            failed(self.error)
        elif self._opened is not None and not self._opened.done():
            self._opened.set_result(None)

    def data_received(self, data: Data) -> None:
        self.early += data
        assert self.transport is not None
        self.transport.pause_reading()

    def eof_received(self) -> bool:
        self.eof = True
        if self.left is not None and self.is_over:
            self.left()
        return True


def park(transport: StreamTransport, early: bytes, *, eof: bool = False) -> None:
    """Park a transport whose beginning has been read by a protocol that it is not for.

    `early` is what was read, `eof` whether the end was among it.
    """
    parked = Parked()
    parked.transport = transport
    parked.eof = eof
    transport.set_protocol(parked)
    if early:
        parked.data_received(early)


def hand_over(transport: StreamTransport, protocol: Any) -> None:
    """Let `protocol` have a parked transport, as if it was new."""
    held = transport.get_protocol()
    transport.set_protocol(protocol)
    # Before `protocol` has a say: it may pause at once.
    transport.resume_reading()
    protocol.connection_made(transport)
    if isinstance(held, Parked):
        if held.early or held.eof:
            _replay(transport, held)
        if held.error is not None:
            transport.report_lost(held.error)


def take_over(*pairs: tuple[StreamTransport, StreamProtocol]) -> None:
    """Let each protocol have its parked transport, and tell it what has been kept.

    Each protocol is set before any of that: it may act on the other transports. A failure comes
    last, in a turn of its own.
    """
    parked = [transport.get_protocol() for transport, _ in pairs]
    for (transport, protocol), held in zip(pairs, parked, strict=True):
        if transport.is_closing():  # it died before it was taken over; nobody else will say so
            error = held.error if isinstance(held, Parked) else None
            asyncio.get_running_loop().call_soon(protocol.connection_lost, error)
        else:
            transport.resume_reading()
    # Each may hear at once that it can write no more, and pauses another transport.
    for transport, protocol in pairs:
        transport.set_protocol(protocol)
    for (transport, _), held in zip(pairs, parked, strict=True):
        if isinstance(held, Parked) and (held.early or held.eof):
            _replay(transport, held)


def _replay(transport: StreamTransport, held: Parked) -> None:
    """Tell the protocol of `transport`, which may hand that on, all but the failure."""
    if held.early:
        transport.get_protocol().data_received(held.early)
    if held.eof and not transport.get_protocol().eof_received():
        transport.close()
