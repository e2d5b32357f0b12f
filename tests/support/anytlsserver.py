"""A Go anytls-server, re-enacted: what it does with sessions, streams and their ends."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import struct
from collections.abc import AsyncIterator

from tests.support.anytlspeer import (
    FIN,
    MD5,
    PSH,
    SERVER_SETTINGS,
    SETTINGS,
    SYN,
    SYNACK,
    UOT,
    frame,
    hashed,
)
from tests.support.certs import Certs
from tests.support.gopeer import Tls
from tests.support.goserver import go_relay
from tests.support.tunnels import Tcp, cancel, connect, serving

# What the reference copies at once.
COPY_SIZE = 32768
# Types of addresses, and their sizes.
_IPV4, _NAME = 1, 3


class Stream(Tcp):
    """One stream at the server. Its pipe holds nothing: a PSH waits until it has been read."""

    def __init__(self, session: Session, number: int) -> None:
        super().__init__(session.tls.sock)
        self._session = session
        self.number = number
        self._unread = b""
        self._changed = asyncio.Condition()
        self._ended = False

    async def push(self, data: bytes) -> None:
        """Called by the session, which reads on when the data have been taken."""
        async with self._changed:
            self._unread = data
            self._changed.notify_all()
            await self._changed.wait_for(lambda: not self._unread or self._ended)

    async def end(self) -> None:
        async with self._changed:
            self._ended = True
            self._changed.notify_all()

    async def _receive(self, size: int) -> bytes:
        async with self._changed:
            await self._changed.wait_for(lambda: self._unread or self._ended)
            data, self._unread = self._unread[:size], self._unread[size:]
            self._changed.notify_all()
            return data

    async def send(self, data: bytes) -> None:
        if self._ended:
            raise BrokenPipeError
        for at in range(0, len(data), COPY_SIZE):
            await self._session.send(frame(PSH, self.number, data[at : at + COPY_SIZE]))

    def close(self) -> None:
        """Say FIN, unless the client has."""
        if self._session.streams.pop(self.number, None) is self and not self._ended:
            self._session.send_later(frame(FIN, self.number))


class Session:
    """One session at the server."""

    def __init__(self, tls: Tls, version: int, destination: int) -> None:
        self.tls = tls
        self.streams: dict[int, Stream] = {}
        self.opened = 0
        self.most = 0  # streams at a time
        self.packets: list[Stream] = []  # those for UDP over TCP, for the test to read
        self._version = version
        self._destination = destination
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    async def send(self, data: bytes) -> None:
        async with self._lock:
            await self.tls.send(data)

    def send_later(self, data: bytes) -> None:
        async def send() -> None:
            with contextlib.suppress(OSError):  # the client may be gone
                await self.send(data)

        self._own(asyncio.create_task(send()))

    def _own(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def run(self) -> None:
        try:
            head = await self.tls.exactly(34)
            if head[:32] != hashed():
                return
            await self.tls.exactly(int.from_bytes(head[32:], "big"))
            await self._receive()
        finally:
            await cancel(*self._tasks)
            self.tls.close()

    async def _receive(self) -> None:
        while len(head := await self.tls.exactly(7)) == 7:
            command, number, size = struct.unpack(">BIH", head)
            data = await self.tls.exactly(size)
            stream = self.streams.get(number)
            if command == SETTINGS:
                assert MD5.encode() in data
                if self._version >= 2:
                    await self.send(frame(SERVER_SETTINGS, 0, b"v=2"))
            elif command == SYN and stream is None:
                self.streams[number] = stream = Stream(self, number)
                self.opened += 1
                self.most = max(self.most, len(self.streams))
                self._own(asyncio.create_task(self._serve(stream)))
            elif command == PSH and stream is not None:
                await stream.push(data)
            elif command == FIN and stream is not None:
                del self.streams[number]
                await stream.end()

    async def _serve(self, stream: Stream) -> None:
        kind = (await stream.exactly(1))[0]
        size = (await stream.exactly(1))[0] if kind == _NAME else 4 if kind == _IPV4 else 16
        address = await stream.exactly(size + 2)
        if address[:-2] == UOT.encode():
            await self.send(frame(SYNACK, stream.number))
            self.packets.append(stream)
            return
        port = self._destination or int.from_bytes(address[-2:], "big")
        try:
            far = await connect(port)
        except OSError as error:
            await self.send(frame(SYNACK, stream.number, str(error).encode()))
            stream.close()
            return
        if self._version >= 2:
            await self.send(frame(SYNACK, stream.number))
        await go_relay(stream, far)


class AnyTlsGoServer:
    """What a client has done at the server, for the test to look at."""

    def __init__(self) -> None:
        self.port = 0
        self.sessions: list[Session] = []


@contextlib.asynccontextmanager
async def anytls_go_server(
    certs: Certs, *, version: int = 2, destination: int = 0
) -> AsyncIterator[AnyTlsGoServer]:
    """A Go anytls-server for the password of the tests.

    `destination`: the port of this machine that all streams lead to; 0: the one that they ask for.
    """
    server = AnyTlsGoServer()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certs.cert, certs.key)

    async def serve(tcp: Tcp) -> None:
        tls = Tls(tcp, context, server_side=True)
        with contextlib.suppress(ssl.SSLError):
            await tls.handshake()
            session = Session(tls, version, destination)
            server.sessions.append(session)
            await session.run()

    async with serving(serve) as there:
        server.port = there.port
        yield server
