"""A Go mtt-server, re-enacted: what it does with connections, streams and their ends."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator

from tests.support.certs import Certs
from tests.support.contexts import bare_context
from tests.support.gopeer import (
    COPY_SIZE,
    FIN,
    PSH,
    SYN,
    Tls,
    WebSocket,
    accept_for,
    smux_frame,
    smux_read,
)
from tests.support.tunnels import Tcp, cancel, connect, serving

# The original's server ends a session (or goes deaf) when its table holds more streams.
MAX_STREAMS = 16
# The subprotocols that it knows; it agrees to no other.
PROTOCOLS = ("smux_on", "smux_off")
# Bytes that were received and not read by the streams; with more nothing is read any more.
BUDGET = 262144


class GoStream(Tcp):
    """One smux stream at the Go server."""

    def __init__(self, session: GoSession, number: int) -> None:
        super().__init__(session.below.sock)
        self._session = session
        self.number = number
        self.queue = bytearray()
        self.ended = False
        self.changed = asyncio.Event()

    async def _receive(self, size: int) -> bytes:
        while not self.queue:
            if self.ended:
                return b""
            self.changed.clear()
            await self.changed.wait()
        data = bytes(self.queue[:size])
        del self.queue[:size]
        self._session.give_back(len(data))
        return data

    async def send(self, data: bytes) -> None:
        for at in range(0, len(data), COPY_SIZE):
            frame = smux_frame(PSH, self.number, data[at : at + COPY_SIZE])
            await self._session.send(frame)

    def close(self) -> None:
        if self._session.streams.pop(self.number, None) is self:
            self._session.give_back(len(self.queue))
            self._session.send_later(smux_frame(FIN, self.number))


class GoSession:
    """The Go server's end of a mux session, up to its limits and what happens beyond."""

    def __init__(self, below: Tcp) -> None:
        self.below = below
        self.streams: dict[int, GoStream] = {}
        self.most = 0
        self._accepted: asyncio.Queue[GoStream] = asyncio.Queue()
        self._budget = BUDGET
        self._room = asyncio.Event()
        self._lock = asyncio.Lock()  # smux writes frame by frame
        self._tasks: set[asyncio.Task[None]] = set()

    async def send(self, frame: bytes) -> None:
        async with self._lock:
            await self.below.send(frame)

    def send_later(self, frame: bytes) -> None:
        async def send() -> None:
            with contextlib.suppress(OSError):  # the client may be gone
                await self.send(frame)

        self._own(asyncio.create_task(send()))

    def give_back(self, size: int) -> None:
        self._budget += size
        self._room.set()

    async def run(self, server: GoServer) -> None:
        acceptor = asyncio.create_task(self._accept(server))
        try:
            await self._receive()
        finally:
            for stream in self.streams.values():
                stream.ended = True
                stream.changed.set()
            await cancel(acceptor, *self._tasks)
            self.below.close()

    def _own(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _receive(self) -> None:
        while True:
            while self._budget <= 0:
                self._room.clear()
                await self._room.wait()
            frame = await smux_read(self.below)
            if frame is None:
                return
            command, number, payload = frame
            stream = self.streams.get(number)
            if command == SYN and stream is None:
                self.streams[number] = stream = GoStream(self, number)
                self.most = max(self.most, len(self.streams))
                self._accepted.put_nowait(stream)
            elif stream is not None and command in (PSH, FIN):
                stream.queue += payload
                self._budget -= len(payload)
                stream.ended = stream.ended or command == FIN
                stream.changed.set()

    async def _accept(self, server: GoServer) -> None:
        while True:
            stream = await self._accepted.get()
            if len(self.streams) > MAX_STREAMS:
                server.overruns += 1
                stream.close()
                return
            self._own(asyncio.create_task(self._serve(stream, server)))

    async def _serve(self, stream: GoStream, server: GoServer) -> None:
        try:
            far = await connect(server.destination)
        except OSError:
            return  # no FIN: the stream stays in the table until the session ends
        await go_relay(stream, far)


class GoServer:
    """What the connections to a Go mtt-server left behind, for the test to look at."""

    def __init__(self, mode: str, destination: int) -> None:
        self.mode = mode
        self.destination = destination
        self.port = 0
        self.heads: list[bytes] = []  # requests for a WebSocket
        self.tls: list[Tls] = []
        self.websockets: list[WebSocket] = []
        self.sessions: list[GoSession] = []
        self.overruns = 0  # how often a client exceeded the limit of streams

    async def serve(self, below: Tcp) -> None:
        if "wss" in self.mode:
            head = await below.until(b"\r\n\r\n")
            self.heads.append(head)
            fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:-2])
            answer = (
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                f"Sec-WebSocket-Accept: {accept_for(fields['Sec-WebSocket-Key'])}\r\n"
            )
            offered = fields["Sec-WebSocket-Protocol"]
            if offered in PROTOCOLS:
                answer += f"Sec-WebSocket-Protocol: {offered}\r\n"
            await below.send(answer.encode() + b"\r\n")
            below = WebSocket(below, client=False)
            self.websockets.append(below)
        if "mux" in self.mode:
            session = GoSession(below)
            self.sessions.append(session)
            await session.run(self)
            return
        try:
            far = await connect(self.destination)
        except OSError:
            if "wss" in self.mode:
                await asyncio.Event().wait()  # left open and silent
            below.close()
            return
        await go_relay(below, far)


async def go_relay(one: Tcp, other: Tcp) -> None:
    """Copy both ways; when either direction ends both sides are closed, whatever is under way."""

    async def copy(source: Tcp, sink: Tcp) -> None:
        while data := await source.read(COPY_SIZE):
            await sink.send(data)

    both = [asyncio.create_task(copy(one, other)), asyncio.create_task(copy(other, one))]
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    finally:
        try:
            await cancel(*both)
        finally:  # when cancelled itself
            one.close()
            other.close()


@contextlib.asynccontextmanager
async def go_server(mode: str, destination: int, certs: Certs) -> AsyncIterator[GoServer]:
    """A Go mtt-server in front of a port of this machine."""
    server = GoServer(mode, destination)
    context = bare_context(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certs.cert, certs.key)

    async def serve(tcp: Tcp) -> None:
        tls = Tls(tcp, context, server_side=True)
        with contextlib.suppress(ssl.SSLError):
            await tls.handshake()
            server.tls.append(tls)
            await server.serve(tls)

    async with serving(serve) as there:
        server.port = there.port
        yield server
