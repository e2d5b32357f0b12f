"""UDP ASSOCIATE (RFC 1928, 7): a local UDP port whose datagrams travel through a channel.

Theory of operation
-------------------
An `Association` has a UDP socket on the address that the client connected to, and a
`PacketChannel` from its owner. It strips the header from the client's datagrams and sends them to
the channel. It adds a header to the channel's datagrams and sends them to the client. Nothing is
queued: a datagram that one side does not accept at once is dropped, as UDP permits.

The association ends with its control connection, when the channel is lost, or when no datagram has
passed for `IDLE_TIME`.
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

# Seconds. RFC 4787 (REQ-5) requires at least 2 minutes of NATs, and recommends 5.
IDLE_TIME = 300.0


class PacketChannel(Protocol):
    """Carries the datagrams of one association."""

    def send(self, host: str, port: int, payload: bytes) -> None:
        """Send a datagram to `host` (IP literal or name), or drop it; never wait."""

    def close(self) -> None:
        """Close the channel. No call follows."""


class Association(asyncio.DatagramProtocol):
    """One client's UDP port.

    Args:
        control: the client's TCP connection.
        port: the client's announced UDP source port (0: the port of its first datagram). The
            source IP must always be the client's.
        idle_time: idle timeout, seconds.
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
        self._write_paused = False  # the UDP socket's send buffer is full
        self._channel: PacketChannel | None = None
        self._over: asyncio.Future[str] = self._loop.create_future()

    async def open(
        self, open_channel: Callable[[Association], Awaitable[PacketChannel]]
    ) -> tuple[str, int]:
        """Bind the port and open the channel. Returns the address for the client's datagrams.

        Raises what `open_channel` raises, and NetworkError if no port is available.
        """
        local, remote = (self._control.get_extra_info(f"{name}name") for name in ("sock", "peer"))
        if not (isinstance(local, tuple) and isinstance(remote, tuple)):
            raise NetworkError("UDP ASSOCIATE needs a TCP control connection")
        self._client_ip = remote[0]
        try:
            sock = socket.socket(
                socket.AF_INET6 if ":" in local[0] else socket.AF_INET, socket.SOCK_DGRAM
            )
            try:
                sock.setblocking(False)
                sock.bind((local[0], 0, *local[2:]))
                host, port = sock.getsockname()[:2]
                # From now on the transport owns the socket.
                await self._loop.create_datagram_endpoint(lambda: self, sock=sock)
            except BaseException:
                sock.close()
                raise
        except OSError as error:
            raise NetworkError(f"no UDP port: {describe(error)}") from None
        self._channel = await open_channel(self)
        self._check_idle()
        return host, port

    async def serve(self) -> str:
        """Wait for the end of the association or the control connection. Returns the reason."""
        if self._control.is_closing():
            return "the client left"
        hand_over(self._control, _Control(self.end))
        return await self._over

    def close(self) -> None:
        """Release everything except the control connection."""
        self.end("closed")
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        if self._transport is not None:
            self._transport.abort()
        if self._channel is not None:
            self._channel.close()

    def end(self, reason: str) -> None:
        """Make `serve` return."""
        if not self._over.done():
            self._over.set_result(reason)

    # Called by the channel.

    def deliver(self, host: str, port: int, payload: Data) -> None:
        """Send the client a datagram from `host` (an IP literal) and `port`."""
        if self._client is None or self._transport is None or self._transport.is_closing():
            return
        if self._write_paused:
            self._drop("the socket's send buffer is full")
            return
        try:
            header = datagram_header(host, port)
        except ValueError as error:
            self._drop(str(error))
            return
        self._active = self._loop.time()
        # error_received() reports a datagram that is too large with the header.
        self._transport.sendto(header + payload, self._client)

    def lost(self, error: Exception | None) -> None:
        self.end(f"far end: {describe(error)}")

    # The protocol of the socket.

    def connection_made(self, transport: Any) -> None:  # uvloop's transports have no asyncio class
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        if addr[0] != self._client_ip or self._client_port not in (0, addr[1]):
            self._drop("not from the client's address")
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
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False

    def connection_lost(self, exc: Exception | None) -> None:
        self.end(f"the UDP port: {describe(exc)}")

    def _drop(self, why: str) -> None:
        logger.debug("%s: a datagram was dropped: %s", peer_name(self._control), why)

    def _check_idle(self) -> None:
        left = self._active + self._idle_time - self._loop.time()
        if left <= 0:
            self.end(f"no datagram for {self._idle_time:g} s")
        else:
            self._idle_timer = self._loop.call_later(left, self._check_idle)


class _Control(Parked):
    """Protocol of a control connection: only its end matters."""

    __slots__ = ("_end",)

    def __init__(self, end: Callable[[str], object]) -> None:
        super().__init__()
        self._end = end

    def data_received(self, data: Data) -> None:
        """Ignore unexpected data."""

    def eof_received(self) -> bool:
        self._end("the client closed")
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        end, self._end = self._end, _ignore  # break the reference cycle
        end(f"the client left: {describe(exc)}")
        super().connection_lost(exc)


def _ignore(reason: str) -> None:
    """Do nothing: the end was reported."""
