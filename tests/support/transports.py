"""Protocols that remember, a transport without a socket, and stacks of layers on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from mtt.layers import linger
from mtt.layers.base import Data, LayerTransport, SharedReader
from mtt.layers.holding import Holding
from mtt.layers.smux import SmuxSession, SmuxStream
from mtt.layers.tls import TlsLayer
from mtt.layers.websocket import WebSocketLayer
from tests.support.certs import Certs

# Kernel buffers of clogged connections: small, so that they fill at once. Linux doubles them.
SMALL_BUFFER = 32 * 1024


async def turns(count: int = 30) -> None:
    """Let the event loop run: what can happen without waiting for time happens."""
    for _ in range(count):
        await asyncio.sleep(0)


class Recorder(SharedReader):
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
        self._stay = stay
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
        # asyncio's own transports repeat it when they are resumed.
        self.eof = True
        self._changed.set()
        return self._stay

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


class FakeTransport(asyncio.Transport):
    """The bottom of a stack without a socket.

    `sent` is what was written. `buffered` is what `get_write_buffer_size` says; nothing is ever
    on its way unless a test claims so.
    """

    def __init__(self, protocol: Any = None) -> None:
        super().__init__()
        self.protocol = protocol
        self.sent = bytearray()
        self.writes: list[bytes] = []
        self.buffered = 0
        self.reading = True
        self.closing = False
        self.aborted = False
        self.eof_written = False
        self.half_close = True

    def take(self) -> bytes:
        """What was written since the last time."""
        sent = bytes(self.sent)
        self.sent.clear()
        return sent

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def get_protocol(self) -> Any:
        return self.protocol

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

    def write(self, data: Any) -> None:
        # Mutable memory must not reach the event loop: CPython 3.12 and later keep a reference.
        assert memoryview(data).readonly
        assert not self.eof_written, "written after the end"
        if not self.closing:
            self.sent += data
            self.writes.append(bytes(data))

    def can_write_eof(self) -> bool:
        return self.half_close

    def write_eof(self) -> None:
        self.eof_written = True

    def close(self) -> None:
        self.lose(None)

    def abort(self) -> None:
        self.aborted = True
        self.lose(None)

    def lose(self, exc: Exception | None) -> None:
        """End the connection, as the event loop does it: one turn later."""
        if not self.closing:
            self.closing = True
            asyncio.get_running_loop().call_soon(lambda: self.protocol.connection_lost(exc))


class FakeLayer(FakeTransport, LayerTransport):
    """The same as a layer of ours, which can pass on a half-close or not."""

    def __init__(self, protocol: Any = None, *, half_close: bool = False) -> None:
        super().__init__(protocol)
        self.half_close = half_close

    def unsent(self) -> int:
        return self.buffered


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


async def attach(sock: socket.socket, protocol: Any) -> asyncio.Transport:
    """Give a connected socket to the event loop."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_connection(lambda: protocol, sock=sock)
    return transport


@contextlib.asynccontextmanager
async def raw_peer(protocol: Any, *, small: bool = False) -> AsyncIterator[socket.socket]:
    """`protocol` at one end of a TCP connection, a bare non-blocking socket at the other."""
    near, far = tcp_sockets(small=small)
    transport = await attach(near, protocol)
    try:
        yield far
    finally:
        far.close()
        linger.reset(transport)
        await turns()


def server_context(
    certs: Certs, version: ssl.TLSVersion | None = None, alpn: list[str] | None = None
) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certs.cert, certs.key)
    return _limited(context, version, alpn)


def client_context(
    certs: Certs, version: ssl.TLSVersion | None = None, alpn: list[str] | None = None
) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(certs.ca)
    return _limited(context, version, alpn)


def _limited(
    context: ssl.SSLContext, version: ssl.TLSVersion | None, alpn: list[str] | None
) -> ssl.SSLContext:
    context.minimum_version = version or ssl.TLSVersion.TLSv1_2
    if version is not None:
        context.maximum_version = version
    if alpn:
        context.set_alpn_protocols(alpn)
    return context


@dataclass
class End:
    """One end of a stack: the protocol at its top and what is below it."""

    recorder: Recorder
    tcp: asyncio.Transport
    sessions: list[SmuxSession] = field(default_factory=list)

    @property
    def transport(self) -> Any:
        return self.recorder.transport

    def close(self) -> None:
        """Close as the relay does: deliver everything, then say the end."""
        linger.close(
            self.transport, self.recorder.connection_lost, eof_seen=self.recorder.eof
        )

    def abort(self) -> None:
        linger.reset(self.transport)

    async def send(self, data: bytes, rng: random.Random | None = None) -> None:
        """Write `data` in pieces of random sizes, minding back-pressure."""
        rng = rng or random.Random(0)
        view = memoryview(data)
        while view:
            await self.recorder.until(lambda: self.recorder.writable)
            size = rng.choice((1, 7, 125, 126, 4096, 16383, 16384, 16385, 65535, 65536, 150_000))
            self.transport.write(bytes(view[:size]))
            view = view[size:]
            await asyncio.sleep(0)

    async def clog(self, limit: int) -> bytes:
        """Write until nothing moves any more; returns what was written.

        Fails when `limit` bytes went in nevertheless.
        """
        piece = random.Random(1).randbytes(16 * 1024)
        written = bytearray()
        still = 0
        while still < 60:
            if self.recorder.writable:
                still = 0
                self.transport.write(piece)
                written += piece
                assert len(written) < limit, "no back-pressure"
            else:
                still += 1
            await asyncio.sleep(0)
        return bytes(written)


@dataclass
class Stack:
    """A way to build both ends of a connection.

    Attributes:
        layers: from the bottom up, of "tls", "websocket", "smux".
        half_close: both ends know each other as ours.
        version: of TLS.
    """

    name: str
    layers: tuple[str, ...]
    half_close: bool = True
    version: ssl.TLSVersion | None = None

    @property
    def knows_failure(self) -> bool:
        """Whether the peer can tell abort() from close(); plain smux has one kind of end only."""
        return self.half_close or "smux" not in self.layers

    @contextlib.asynccontextmanager
    async def open(self, certs: Certs, *, small: bool = False) -> AsyncIterator[tuple[End, End]]:
        """Both ends, the client's first."""
        ends: list[End] = []
        socks = tcp_sockets(small=small)
        try:
            for client, sock in zip((True, False), socks, strict=True):
                recorder = Recorder()
                sessions: list[SmuxSession] = []
                protocol = self._protocol(certs, recorder, sessions, client)
                ends.append(End(recorder, await attach(sock, protocol), sessions))
            for end in ends:
                await end.recorder.until(lambda end=end: end.transport is not None)
                while self.half_close and not end.transport.can_write_eof():
                    await asyncio.sleep(0)  # WebSocket ends greet each other first
            yield ends[0], ends[1]
        finally:
            for end in ends:
                for session in end.sessions:
                    session.abort()
                linger.reset(end.tcp)
            await turns()

    def _protocol(
        self, certs: Certs, recorder: Recorder, sessions: list[SmuxSession], client: bool
    ) -> Any:
        upper: Any = recorder
        for layer in reversed(self.layers):
            if layer == "smux":
                upper = _smux(upper, sessions, client)
            elif layer == "websocket":
                upper = _websocket(upper, client, self.half_close)
            else:
                context = (client_context if client else server_context)(
                    certs, self.version, ["http/1.1"]
                )
                upper = TlsLayer(
                    upper,
                    context,
                    server_side=not client,
                    server_name=certs.name if client else None,
                    half_close=self.half_close,
                )
        return upper


def _websocket(upper: Any, client: bool, half_close: bool) -> Holding:
    layer = WebSocketLayer(upper, client=client, half_close=half_close)
    return Holding(layer.start)


def _smux(upper: Any, sessions: list[SmuxSession], client: bool) -> Holding:
    def ready(transport: asyncio.Transport) -> None:
        session = SmuxSession(accept=None if client else lambda: upper)
        sessions.append(session)
        transport.set_protocol(session)
        session.connection_made(transport)
        transport.resume_reading()
        if client:
            session.open_stream(upper)

    return Holding(ready)


STACKS = [
    Stack("tcp", ()),
    Stack("tls1.2", ("tls",), version=ssl.TLSVersion.TLSv1_2),
    Stack("tls1.3", ("tls",), version=ssl.TLSVersion.TLSv1_3),
    Stack("tls-foreign", ("tls",), half_close=False),
    Stack("websocket", ("websocket",)),
    Stack("websocket-tls", ("tls", "websocket")),
    Stack("websocket-tls-foreign", ("tls", "websocket"), half_close=False),
    Stack("smux-tls", ("tls", "smux")),
    Stack("smux-tls-foreign", ("tls", "smux"), half_close=False),
    Stack("smux-websocket-tls", ("tls", "websocket", "smux")),
    Stack("smux-websocket-tls-foreign", ("tls", "websocket", "smux"), half_close=False),
]

__all__ = [
    "STACKS", "End", "FakeLayer", "FakeTransport", "Recorder", "SmuxStream", "Stack", "attach",
    "client_context", "raw_peer", "server_context", "tcp_sockets", "turns",
]  # fmt: skip
