"""Parked connections, which wait for the protocol that will use them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from mtt.errors import NetworkError, again
from mtt.layers.base import Data, StreamProtocol, StreamTransport


class Parked(StreamProtocol):
    """The protocol of a parked connection: keeps data until another protocol takes over.

    See `hand_over()` and, for several connections at a time, `take_over()`. Most connections
    receive nothing before, so only the first data pauses reading: pausing and resuming each one
    would cost four system calls. If the connection dies meanwhile, `transport.is_closing()` and
    `error` report it.

    Args:
        ready: called with the transport when the layers below are ready. Without it, `await
            opened()`.
        failed: called if they fail instead.

    Attributes:
        ended: called if the connection is cut later, or is over.
    """

    __slots__ = ("_opened", "_ready", "early", "ended", "eof", "error", "failed", "transport")

    def __init__(
        self,
        ready: Callable[[StreamTransport], None] | None = None,
        failed: Callable[[Exception], None] | None = None,
    ) -> None:
        self._ready = ready
        self.failed = failed
        self.ended: Callable[[], object] | None = None
        self._opened: asyncio.Future[StreamTransport | None] | None = None  # None: it failed
        self.transport: StreamTransport | None = None
        self.error: Exception | None = None
        self.early = b""
        self.eof = False

    async def opened(self) -> StreamTransport:
        """Wait for the transport. Raises the PeerError or NetworkError of a layer that fails."""
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
        """Whether the connection died before the peer's end, or by a reset, which revokes all."""
        error = self.error
        return isinstance(error, ConnectionResetError) or (error is not None and not self.eof)

    @property
    def is_over(self) -> bool:
        """Whether the peer has ended both directions without sending data."""
        transport = self.transport
        return (
            self.eof and not self.early and transport is not None and not transport.half_closes()
        )

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        ready, self._ready, self.failed = self._ready, None, None
        opened, self._opened = self._opened, None  # whose result refers to this object
        if ready is not None:
            ready(transport)
        elif opened is not None and not opened.done():
            opened.set_result(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.error = exc or NetworkError("connection closed")
        # They refer to objects that refer to this one.
        transport, self.transport = self.transport, None
        failed, self._ready, self.failed = self.failed, None, None
        ended, self.ended = self.ended, None
        if transport is not None:
            transport.set_protocol(self)  # for a protocol that takes over now
            if ended is not None and self.is_cut:
                ended()
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
        if self.ended is not None and self.is_over:
            self.ended()
        return True


def park(transport: StreamTransport, early: bytes, *, eof: bool = False) -> None:
    """Park a transport of which another protocol has read `early`, and the end if `eof`."""
    parked = Parked()
    parked.transport = transport
    parked.eof = eof
    transport.set_protocol(parked)
    if early:
        parked.data_received(early)


def hand_over(transport: StreamTransport, protocol: Any) -> None:
    """Give a parked transport to `protocol`, as if it was new."""
    held = transport.get_protocol()
    transport.set_protocol(protocol)
    # Before any call of `protocol`, which may pause at once.
    transport.resume_reading()
    protocol.connection_made(transport)
    if isinstance(held, Parked):
        if held.early or held.eof:
            _replay(transport, held)
        if held.error is not None:
            transport.report_lost(held.error)


def take_over(*pairs: tuple[StreamTransport, StreamProtocol]) -> None:
    """Give each protocol its parked transport, and the data kept.

    All protocols are set before, because each may act on the other transports. A failure is
    reported last, in a separate turn.
    """
    parked = [transport.get_protocol() for transport, _ in pairs]
    for (transport, protocol), held in zip(pairs, parked, strict=True):
        if transport.is_closing():  # it died while parked, so it makes no further call
            error = held.error if isinstance(held, Parked) else None
            asyncio.get_running_loop().call_soon(protocol.connection_lost, error)
        else:
            transport.resume_reading()
    # Each may be told at once to pause writing, and then pauses another transport.
    for transport, protocol in pairs:
        transport.set_protocol(protocol)
    for (transport, _), held in zip(pairs, parked, strict=True):
        if isinstance(held, Parked) and (held.early or held.eof):
            _replay(transport, held)


def _replay(transport: StreamTransport, held: Parked) -> None:
    """Pass kept data and end to the protocol of `transport`, which the data may replace."""
    if held.early:
        transport.get_protocol().data_received(held.early)
    if held.eof and not transport.get_protocol().eof_received():
        transport.close()
