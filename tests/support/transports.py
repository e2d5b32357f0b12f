"""A protocol that remembers, transports without a socket, and bare sockets on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

from mtt.layers.base import Data, StreamProtocol, StreamTransport
from mtt.layers.tcp import SocketTransport

# Kernel buffers of clogged connections: small, so that they fill at once. Linux doubles them.
SMALL_BUFFER = 32 * 1024


async def turns(count: int = 30) -> None:
    """Let the event loop run: what can happen without waiting for time happens."""
    for _ in range(count):
        await asyncio.sleep(0)


class Recorder(StreamProtocol):
    """A protocol that remembers what it was told, and complains about what it must not be told."""

    def __init__(self, *, stay: bool = True) -> None:
        """`stay`: what to answer to the end of the peer's data, True keeps the transport open."""
        self.transport: Any = None
        self.data = bytearray()
        self.calls = 0
        self.eof = False
        self.lost = False
        self.error: Exception | None = None
        self.writable = True
        self.pauses = 0
        self.on_data: Callable[[bytes], None] | None = None
        self.stay = stay
        self._changed = asyncio.Event()

    async def until(self, condition: Callable[[], Any]) -> None:
        """Wait until one of the calls below made `condition` true."""
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    async def received(self, count: int) -> bytes:
        """Wait for `count` bytes in all; returns everything so far."""
        await self.until(lambda: len(self.data) >= count or self.eof or self.lost)
        return bytes(self.data)

    async def opened(self) -> None:
        """Wait for `connection_made`."""
        await self.until(lambda: self.transport is not None)

    async def at_eof(self) -> bytes:
        """Wait for the end of the peer's data; returns all of it. Fails when it was cut."""
        await self.until(lambda: self.eof or self.lost)
        assert self.eof, self.error
        return bytes(self.data)

    async def can_write(self) -> None:
        """Wait until writing is not paused."""
        await self.until(lambda: self.writable)

    async def ended(self) -> Exception | None:
        """Wait for `connection_lost`; returns its reason."""
        await self.until(lambda: self.lost)
        return self.error

    def connection_made(self, transport: Any) -> None:
        assert self.transport is None, "connection_made twice"
        assert not self.lost, "connection_made after connection_lost"
        self.transport = transport
        self._changed.set()

    def data_received(self, data: Data) -> None:
        assert self.transport is not None, "data before connection_made"
        assert not self.lost, "data after connection_lost"
        assert not self.eof, "data after the end"
        assert len(data), "empty data"
        self.calls += 1
        self.data += data
        if self.on_data is not None:
            self.on_data(bytes(data))
        self._changed.set()

    def eof_received(self) -> bool:
        assert not self.lost, "the end after connection_lost"
        assert not self.eof, "the end twice"
        self.eof = True
        self._changed.set()
        return self.stay

    def connection_lost(self, exc: Exception | None) -> None:
        assert not self.lost, "connection_lost twice"
        self.lost = True
        self.error = exc
        self._changed.set()

    def pause_writing(self) -> None:
        assert not self.lost, "pause_writing after connection_lost"
        self.writable = False
        self.pauses += 1
        self._changed.set()

    def resume_writing(self) -> None:
        assert not self.lost, "resume_writing after connection_lost"
        self.writable = True
        self._changed.set()


class FakeTransport(StreamTransport):
    """The bottom of a stack without a socket.

    `sent` is what was written. `buffered` is what `get_write_buffer_size` says; nothing is ever
    on its way unless a test claims so.

    Args:
        half_close: what `half_closes` says.
    """

    def __init__(self, protocol: Any = None, *, half_close: bool | None = True) -> None:
        super().__init__()
        self.upper = protocol
        self.sent = bytearray()
        self.writes: list[bytes] = []
        self.buffered = 0
        self.reading = True
        self.closing = False
        self.aborted = self.was_cut = False
        self.eof_written = False
        self.is_ours = False  # has been told that its peer is
        self.half_close = half_close
        self.drops_at_end = False
        self.written = 0

    @property
    def protocol(self) -> Any:
        return self.upper

    def take(self) -> bytes:
        """What was written since the last time."""
        sent = bytes(self.sent)
        self.sent.clear()
        return sent

    def is_closing(self) -> bool:
        return self.closing

    def is_reading(self) -> bool:
        return self.reading

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def get_write_buffer_size(self) -> int:
        return self.buffered

    def unsent(self) -> int:
        return self.buffered

    @property
    def socket_written(self) -> int:
        return self.written

    def write(self, data: Any) -> None:
        # Memory that may be used again must not get here, unless this says that it borrows.
        assert memoryview(data).readonly
        if not self.closing:
            assert not self.eof_written, "written after the end"
            self.written += len(data)
            self.sent += data
            self.writes.append(bytes(data))

    def half_closes(self) -> bool | None:
        return self.half_close

    @property
    def drops_data_at_end(self) -> bool:
        return self.drops_at_end

    def write_eof(self) -> None:
        self.eof_written = True

    def set_peer_is_ours(self) -> None:
        self.is_ours = True

    def close(self) -> None:
        if not self.closing:
            self.eof_written = self.reading = True  # what still comes is discarded
        self.lose(None)

    def cut(self) -> None:
        self.was_cut = True
        self.aborted = not self.buffered  # else that comes later
        self.lose(None)

    def abort(self) -> None:
        self.aborted = True
        self.lose(None)

    def drain(self) -> None:
        self.lose(None)

    def drop(self) -> None:
        self.lose(None)

    def lose(self, exc: Exception | None) -> None:
        """End the connection, as the event loop does it: one turn later."""
        if not self.closing:
            self.closing = True
            asyncio.get_running_loop().call_soon(lambda: self.upper.connection_lost(exc))


class FakeLayer(FakeTransport):
    """The same as a layer, which as a rule cannot pass on a half-close."""

    def __init__(self, protocol: Any = None, *, half_close: bool | None = False) -> None:
        super().__init__(protocol, half_close=half_close)


def tcp_sockets(*, small: bool = False) -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection on loopback, non-blocking."""
    with socket.socket() as listener:
        near, far = socket.socket(), None
        if small:
            for sock in (listener, near):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BUFFER)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        near.connect(listener.getsockname())
        far, _ = listener.accept()
    for sock in (near, far):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
    return near, far


def attach(sock: socket.socket, protocol: Any) -> SocketTransport:
    """Put a connected socket under `protocol`."""
    return SocketTransport(sock, protocol)


@contextlib.asynccontextmanager
async def raw_peer(protocol: Any, *, small: bool = False) -> AsyncIterator[socket.socket]:
    """`protocol` at one end of a TCP connection, a bare non-blocking socket at the other."""
    near, far = tcp_sockets(small=small)
    transport = attach(near, protocol)
    try:
        yield far
    finally:
        far.close()
        transport.abort()
        await turns()
