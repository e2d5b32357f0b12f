"""Both ends of a connection with any stack of layers, on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from mtt.http.fallback import Visit
from mtt.layers import anyproxy, anytls, mux_tunnel
from mtt.layers.anyproxy import GoSession
from mtt.layers.anyproxy_stream import MAX_PIECE
from mtt.layers.anytls_client import ClientSession, ServerState
from mtt.layers.anytls_server import ServerSession
from mtt.layers.base import Data, StreamProtocol
from mtt.layers.mux import MuxSession
from mtt.layers.mux_cool import MuxCoolSession
from mtt.layers.mux_tunnel import STOP_AT, TunnelSession
from mtt.layers.parked import Parked, hand_over
from mtt.layers.reads import READ_SIZE
from mtt.layers.smux import SmuxSession
from mtt.layers.tls import TlsLayer
from mtt.layers.websocket import WebSocketLayer
from mtt.layers.websocket_messages import MessageLayer
from mtt.outcome import Outcome
from mtt.wire.agent import TCP, Head
from mtt.wire.anyproxy import MAX_MESSAGE
from mtt.wire.anytls import PreambleReader
from tests.support.certs import Certs
from tests.support.contexts import bare_context
from tests.support.thin_layers import LAYERS, started
from tests.support.transports import Recorder, attach, tcp_sockets, turns


def server_context(
    certs: Certs, version: ssl.TLSVersion | None = None, alpn: list[str] | None = None
) -> ssl.SSLContext:
    context = bare_context(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certs.cert, certs.key)
    return _limited(context, version, alpn)


def client_context(
    certs: Certs, version: ssl.TLSVersion | None = None, alpn: list[str] | None = None
) -> ssl.SSLContext:
    context = bare_context(ssl.PROTOCOL_TLS_CLIENT)
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
    sessions: list[MuxSession[Any]] = field(default_factory=list)

    @property
    def transport(self) -> Any:
        return self.recorder.transport

    def close(self) -> None:
        """Close as the relay does: deliver everything, then say the end."""
        self.transport.close()

    def abort(self) -> None:
        self.transport.abort()

    async def send(self, data: bytes, rng: random.Random | None = None) -> None:
        """Write `data` in pieces of random sizes, minding back-pressure."""
        rng = rng or random.Random(0)
        view = memoryview(data)
        while view:
            await self.recorder.can_write()
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
        layers: from the bottom up, of "tls", "websocket", "smux", "reverse-smux", "mux-cool",
            "anytls", "messages", "anyproxy", "throttle", "two-way-throttle", "counter", "visit".
        half_close: both ends know each other as ours.
        version: of TLS.
    """

    name: str
    layers: tuple[str, ...]
    half_close: bool = True
    version: ssl.TLSVersion | None = None

    @property
    def knows_failure(self) -> bool:
        """Whether the peer can tell abort() from close(); foreign sessions cannot say it."""
        return self.half_close or not {"smux", "anytls", "anyproxy"}.intersection(self.layers)

    @property
    def has_tunnel_session(self) -> bool:
        return not {"smux", "reverse-smux", "mux-cool"}.isdisjoint(self.layers)

    @property
    def ends_both(self) -> bool:
        """Whether the server's end of data is the end of both directions, as that of a web server
        is to its visitors."""
        return "visit" in self.layers

    @property
    def capacity(self) -> int:
        """What a clogged connection may hold in all: kernel buffers of both sides, the
        high-water mark, one read in the layers, and what the sessions allow to queue."""
        limit = 6 * READ_SIZE
        if self.has_tunnel_session:
            limit += STOP_AT if self.half_close else mux_tunnel.RECEIVE_BUDGET
        if "anytls" in self.layers:
            limit += anytls.RECEIVE_BUDGET
        if "anyproxy" in self.layers:
            limit += anyproxy.STREAM_LIMIT + 2 * MAX_PIECE
        if not {"throttle", "two-way-throttle"}.isdisjoint(self.layers):
            limit += READ_SIZE
        return limit

    @contextlib.asynccontextmanager
    async def open(
        self, certs: Certs, *, small: bool = False, greeted: bool = True
    ) -> AsyncIterator[tuple[End, End]]:
        """Both ends, the client's first; unless `greeted`, they need not know each other yet."""
        ends: list[End] = []
        socks = tcp_sockets(small=small)
        try:
            for client, sock in zip((True, False), socks, strict=True):
                recorder = Recorder()
                sessions: list[MuxSession[Any]] = []
                protocol = self._protocol(certs, recorder, sessions, client)
                ends.append(End(recorder, attach(sock, protocol), sessions))
            for end in ends:
                await end.recorder.opened()
                while greeted and self.half_close and not end.transport.can_write_eof():
                    await asyncio.sleep(0)  # WebSocket ends greet each other first
            yield ends[0], ends[1]
        finally:
            for end in ends:
                for session in end.sessions:
                    session.abort()
                end.tcp.abort()
            await turns()

    def _protocol(
        self, certs: Certs, recorder: Recorder, sessions: list[MuxSession[Any]], client: bool
    ) -> Any:
        upper: Any = recorder
        for layer in reversed(self.layers):
            if layer == "smux":
                upper = _session(SmuxSession, upper, sessions, client)
            elif layer == "reverse-smux":  # as an agent's gateway has it: the server opens streams
                upper = _session(SmuxSession, upper, sessions, not client)
            elif layer == "mux-cool":
                upper = _session(MuxCoolSession, upper, sessions, client)
            elif layer == "anytls":
                upper = _anytls(upper, sessions, client, self.half_close)
            elif layer == "anyproxy":
                upper = _anyproxy(upper, sessions, client)
            elif layer == "messages":
                upper = Parked(MessageLayer(upper, client=client, limit=MAX_MESSAGE).start)
            elif layer == "websocket":
                upper = _websocket(upper, client, self.half_close)
            elif layer in LAYERS:
                upper = started(upper, LAYERS[layer])
            elif layer == "visit":
                upper = upper if client else _visit(upper)
            else:
                context = (client_context if client else server_context)(
                    certs, self.version, ["http/1.1"]
                )
                upper = TlsLayer(
                    upper,
                    context,
                    server_side=not client,
                    server_name=certs.name if client else None,
                    # TLS below TLS is that of a proxy, not of our own ends.
                    half_close=self.half_close and not isinstance(upper, TlsLayer),
                )
        return upper


def _websocket(upper: Any, client: bool, half_close: bool) -> Parked:
    layer = WebSocketLayer(upper, client=client, half_close=half_close)
    return Parked(layer.start)


class _AllPasses:
    """Watches a visitor who wants no tunnel."""

    unfinished = b""
    is_committed = True

    def take(self, data: bytes, eof: bool) -> tuple[bytes, bytes | None]:
        return data, None


def _visit(upper: Any) -> Parked:
    def ready(transport: Any) -> None:
        Visit(upper, _AllPasses(), on_settled=lambda _: None).start(transport)

    return Parked(ready)


def _session(
    kind: type[TunnelSession], upper: Any, sessions: list[MuxSession[Any]], client: bool
) -> Parked:
    def ready(transport: asyncio.Transport) -> None:
        session = kind(accept=None if client else lambda: upper)
        sessions.append(session)
        hand_over(transport, session)
        if client:
            session.open_stream(upper)

    return Parked(ready)


def _anyproxy(upper: Any, sessions: list[MuxSession[Any]], client: bool) -> Parked:
    """The server is the gateway, which opens the streams."""

    def serve(stream: Any, head: Head, tell: Any) -> None:
        tell(Outcome.SUCCEEDED)
        hand_over(stream, upper)

    def ready(transport: asyncio.Transport) -> None:
        session = GoSession(serve=serve if client else None)
        sessions.append(session)
        hand_over(transport, session)
        if not client:
            session.open_stream(upper, Head(TCP, "192.0.2.1", 80))

    return Parked(ready)


class _Destination(StreamProtocol):
    """Takes the destination from the beginning of a stream."""

    def __init__(self, upper: Recorder) -> None:
        self._upper = upper

    def connection_made(self, transport: Any) -> None:
        self._stream = transport

    def data_received(self, data: Data) -> None:
        assert bytes(data[:4]) == b"dest"
        self._stream.acknowledge()
        hand_over(self._stream, self._upper)
        if data[4:]:
            self._upper.data_received(data[4:])


def _anytls(
    upper: Recorder, sessions: list[MuxSession[Any]], client: bool, half_close: bool
) -> Parked:
    def ready(transport: asyncio.Transport) -> None:
        session: MuxSession[Any]
        if client:
            session = ClientSession(bytes(32), ServerState(), half_close=half_close)
            hand_over(transport, session)
            session.open_stream(upper, b"dest")
        else:
            session = ServerSession(lambda: _Destination(upper))
            hand_over(transport, _Preamble(session))
        sessions.append(session)

    return Parked(ready)


class _Preamble(StreamProtocol):
    """Reads what comes before the session."""

    def __init__(self, session: ServerSession) -> None:
        self._session = session
        self._reader = PreambleReader()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: Data) -> None:
        self._reader.feed(data)
        if self._reader.rest is not None:
            hand_over(self._transport, self._session)
            self._session.data_received(self._reader.rest)


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
    Stack("anytls-tls", ("tls", "anytls")),
    Stack("anytls-tls-foreign", ("tls", "anytls"), half_close=False),
    Stack("smux-websocket-tls", ("tls", "websocket", "smux")),
    Stack("smux-websocket-tls-foreign", ("tls", "websocket", "smux"), half_close=False),
    Stack("reverse-smux-websocket-tls", ("tls", "websocket", "reverse-smux")),
    Stack("mux-cool-websocket-tls", ("tls", "websocket", "mux-cool")),
    Stack("mux-cool-websocket-tls-foreign", ("tls", "websocket", "mux-cool"), half_close=False),
    Stack("anyproxy-tls", ("tls", "messages", "anyproxy"), half_close=False),
    Stack("throttle-tcp", ("throttle",)),
    Stack("throttle-tls", ("tls", "throttle")),
    Stack("throttle-websocket-tls", ("tls", "websocket", "throttle")),
    Stack("throttle-smux-tls", ("tls", "smux", "throttle")),
    Stack("two-way-throttle-tcp", ("two-way-throttle",)),
    Stack("two-way-throttle-smux-tls", ("tls", "smux", "two-way-throttle")),
    Stack("counter-smux-tls", ("tls", "smux", "counter")),
    Stack("visit-tls", ("tls", "visit")),
]
