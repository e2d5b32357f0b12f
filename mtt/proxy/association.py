"""UDP ASSOCIATE (RFC 1928, 7): a local UDP port whose datagrams are carried elsewhere.

Theory of operation
-------------------
An `Association` has a socket on the address that its client reached us at, and a `PacketChannel`
that its owner supplies. Datagrams of the client lose their header and go to the channel; what the
channel delivers gets one and goes to the client. Nothing is queued here: what one side does not
take at once is dropped, as UDP does.

It lives as long as its control connection, and ends before that when the channel is lost or when
no datagram passed for `IDLE_TIME`.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from mtt.address import peer_name
from mtt.errors import NetworkError, describe
from mtt.layers.base import Data, StreamTransport
from mtt.layers.parked import Parked, hand_over
from mtt.log import logger
from mtt.wire.socks import SocksError, datagram_header, parse_datagram

# RFC 4787 (REQ-5) asks NATs for 2 minutes at least, and recommends 5.
IDLE_TIME = 300.0


class PacketChannel(Protocol):
    """What carries the datagrams of one association."""

    def send(self, host: str, port: int, payload: bytes) -> None:
        """Carry a datagram to `host` (IP literal or name).

        Must not wait; drops what it cannot take, and is told nothing after `close()`.
        """

    def close(self) -> None:
        """The association is over."""


class Association(asyncio.DatagramProtocol):
    """One client's UDP port.

    Args:
        control: the connection on which the client asked for it.
        port: from which port the client says its datagrams will come; 0 for the port of the first
            one. Only its IP is ever listened to.
        idle_time: seconds, see IDLE_TIME.
    """

    def __init__(
        self, control: StreamTransport, port: int = 0, *, idle_time: float = IDLE_TIME
    ) -> None:
        self._control = control
        self._client_ip = ""
        self._client: tuple[Any, ...] | None = None
        self._client_port = port
        self._idle_time = idle_time
        self._loop = asyncio.get_running_loop()
        self._idle_timer: asyncio.TimerHandle | None = None
        self._active = self._loop.time()
        self._transport: asyncio.DatagramTransport | None = None
        self._clogged = False  # the client's socket does not take any more
        self._channel: PacketChannel | None = None
        self._over: asyncio.Future[str] = self._loop.create_future()

    async def open(
        self, open_channel: Callable[[Association], Awaitable[PacketChannel]]
    ) -> tuple[str, int]:
        """Bind the port and get the channel; returns the address that the client shall send to.

        Raises what `open_channel` raises, NetworkError if there can be no port.
        """
        ours, theirs = (self._control.get_extra_info(f"{name}name") for name in ("sock", "peer"))
        if not (isinstance(ours, tuple) and isinstance(theirs, tuple)):
            raise NetworkError("no UDP for a client that did not come by TCP")
        self._client_ip = theirs[0]
        try:
            sock = socket.socket(
                socket.AF_INET6 if ":" in ours[0] else socket.AF_INET, socket.SOCK_DGRAM
            )
            try:
                sock.setblocking(False)
                sock.bind((ours[0], 0, *ours[2:]))
                host, port = sock.getsockname()[:2]
                # From here on the transport owns the socket.
                await self._loop.create_datagram_endpoint(lambda: self, sock=sock)
            except BaseException:
                sock.close()
                raise
        except OSError as error:
            raise NetworkError(f"no UDP port: {describe(error)}") from None
        self._channel = await open_channel(self)
        self._look_idle()
        return host, port

    async def serve(self) -> str:
        """Wait for the end, also that of the control connection; returns the reason."""
        if self._control.is_closing():
            return "the client left"
        hand_over(self._control, _Control(self.end))
        return await self._over

    def close(self) -> None:
        """Give everything back but the control connection."""
        self.end("closed")
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        if self._transport is not None:
            self._transport.abort()
        if self._channel is not None:
            self._channel.close()

    def end(self, reason: str) -> None:
        """Let `serve` return."""
        if not self._over.done():
            self._over.set_result(reason)

    # Called by the channel.

    def deliver(self, host: str, port: int, payload: Data) -> None:
        """Give the client a datagram that came from `host` (an IP literal) and `port`."""
        if self._client is None or self._transport is None or self._transport.is_closing():
            return
        if self._clogged:
            self._drop("the client does not take them")
            return
        try:
            header = datagram_header(host, port)
        except ValueError as error:
            self._drop(str(error))
            return
        self._active = self._loop.time()
        # If it is too large for UDP with the header, error_received tells.
        self._transport.sendto(header + payload, self._client)

    def lost(self, error: Exception | None) -> None:
        """The channel is gone."""
        self.end(f"far end: {describe(error)}")

    # The protocol of the socket.

    def connection_made(self, transport: Any) -> None:  # uvloop's are of no asyncio class
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        if addr[0] != self._client_ip or self._client_port not in (0, addr[1]):
            self._drop("it is from somebody else")
            return
        try:
            host, port, start = parse_datagram(data)
        except SocksError as error:
            self._drop(str(error))
            return
        self._client = addr
        self._client_port = addr[1]
        self._active = self._loop.time()
        if self._channel is not None and not self._over.done():
            self._channel.send(host, port, data[start:])

    def error_received(self, exc: Exception) -> None:
        self._drop(describe(exc))

    def pause_writing(self) -> None:
        self._clogged = True

    def resume_writing(self) -> None:
        self._clogged = False

    def connection_lost(self, exc: Exception | None) -> None:
        self.end(f"the UDP port: {describe(exc)}")

    def _drop(self, why: str) -> None:
        logger.debug("%s: a datagram was dropped: %s", peer_name(self._control), why)

    def _look_idle(self) -> None:
        left = self._active + self._idle_time - self._loop.time()
        if left <= 0:
            self.end(f"no datagram for {self._idle_time:g} s")
        else:
            self._idle_timer = self._loop.call_later(left, self._look_idle)


class _Control(Parked):
    """The protocol of a control connection: only its end means anything."""

    __slots__ = ("_end",)

    def __init__(self, end: Callable[[str], object]) -> None:
        super().__init__()
        self._end = end

    def data_received(self, data: Data) -> None:
        """Nobody asked for anything."""

    def eof_received(self) -> bool:
        self._end("the client closed")
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        end, self._end = self._end, _nothing  # it refers to what refers to us
        end(f"the client left: {describe(exc)}")
        super().connection_lost(exc)


def _nothing(reason: str) -> None:
    """The association knows."""
