"""A gateway and an agent that behave as the Go programs of AnyProxy do, weaknesses included.

This shares no code with the package under test, so that a mistake cannot cancel itself out.

What is copied: a queue of 100 messages for each stream, whose overflow ends the stream without a
word about the loss; fragments of 4096 bytes from the agent; no flow control and no half-close;
writes that fail after 10 s, after which the session is useless but stays; CONNECT, and data at
once, from the gateway; an agent that needs CLOSE after it could not connect.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any

from tests.support.anyproxysocket import Socket
from tests.support.certs import Certs
from tests.support.contexts import bare_context, trusting_context
from tests.support.gopeer import accept_for, upgrade_request

CONNECT, RESPONSE, END, PORTS, PORTS_RESPONSE, ERROR, DATA = 1, 2, 3, 4, 5, 8, 16
QUEUE = 100  # messages
READ = 32 * 1024
CLOSE_TIME = 0.2  # for the other side's close_notify


def text(value: str) -> bytes:
    return len(value.encode()).to_bytes(2, "big") + value.encode()


def texts(data: bytes, count: int) -> list[str]:
    """The texts that `data` begins with."""
    found = []
    for _ in range(count):
        size = int.from_bytes(data[:2], "big")
        found.append(data[2 : 2 + size].decode())
        data = data[2 + size :]
    return found


class Stream:
    """One stream of either program, with its queue and whatever it writes to."""

    def __init__(self, peer: Peer, wire_id: bytes) -> None:
        self.id = wire_id
        self.queue: asyncio.Queue[bytes | None] = asyncio.Queue(QUEUE + 1)
        self.peer = peer
        self.is_over = False

    def put(self, data: bytes) -> None:
        """Queue a message from the other program; the one too many ends the stream."""
        if self.queue.qsize() >= QUEUE:
            self.peer.killed.append(self.id)
            while not self.queue.empty():
                self.queue.get_nowait()
            self.finish()
        else:
            self.queue.put_nowait(data)

    def finish(self) -> None:
        """The other program said CLOSE."""
        if not self.is_over:
            self.is_over = True
            self.queue.put_nowait(None)

    async def send(self, data: bytes) -> None:
        await self.peer.socket.send(bytes((1, DATA)) + self.id + data)

    async def say_close(self) -> None:
        with contextlib.suppress(ConnectionError):
            await self.peer.socket.send(bytes((1, END)) + self.id)


class Peer:
    """What both programs have in common."""

    def __init__(self, socket: Socket) -> None:
        self.socket = socket
        self.streams: dict[bytes, Any] = {}
        self.killed: list[bytes] = []
        self.is_over = asyncio.Event()
        self.tasks: set[asyncio.Task[None]] = set()
        self.spawn(self._read())

    def spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _read(self) -> None:
        while (message := await self.socket.receive()) is not None:
            if message[:1] != b"\1" or not await self.received(message[1], message[2:]):
                break
        self.is_over.set()
        for stream in list(self.streams.values()):
            stream.finish()
        await self.socket.close()

    async def received(self, kind: int, body: bytes) -> bool:
        """Handle a message; false ends the session."""
        if kind == DATA:
            stream = self.streams.get(body[:20])
            if stream is not None:
                stream.put(body[20:])
        elif kind == END:
            stream = self.streams.get(body[:20])
            if stream is not None:
                stream.finish()
        else:
            return kind == ERROR
        return True

    async def close(self) -> None:
        await self.socket.close()
        for task in list(self.tasks):
            task.cancel()
        if self.tasks:
            await asyncio.wait(self.tasks)
        await asyncio.sleep(0)  # sockets are closed one turn later


class GoAgent(Peer):
    """The Go agent. `answers_close`: whether it sends CLOSE for a stream that was closed."""

    answers_close = True
    ports_response = b""

    async def received(self, kind: int, body: bytes) -> bool:
        if kind == CONNECT:
            network, address = texts(body[20:], 2)
            stream = self.streams[body[:20]] = Stream(self, body[:20])
            self.spawn(self._serve(stream, network, address))
            return True
        if kind == PORTS_RESPONSE:
            self.ports_response = body
            return True
        return await super().received(kind, body)

    async def _serve(self, stream: Stream, network: str, address: str) -> None:
        host, _, port = address.rpartition(":")
        try:
            if network == "udp":
                await self._serve_udp(stream, host.strip("[]"), int(port))
                return
            reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        except OSError:
            error = f"dial {network} {address}: connect: connection refused"
            await self.socket.send(bytes((1, RESPONSE)) + stream.id + b"\0" + text(error))
            while await stream.queue.get() is not None:  # it stays until CLOSE
                pass
            del self.streams[stream.id]
            return
        try:
            with contextlib.suppress(ConnectionError):
                await self.socket.send(bytes((1, RESPONSE)) + stream.id + b"\1\0\0")
                self.spawn(self._forward(stream, reader))
                while (data := await stream.queue.get()) is not None:
                    writer.write(data)
                    await writer.drain()
        finally:
            writer.close()

    async def _forward(self, stream: Stream, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(READ):
                await stream.send(data)
        self.streams.pop(stream.id, None)
        if not stream.is_over or self.answers_close:
            await stream.say_close()
        stream.finish()

    async def _serve_udp(self, stream: Stream, host: str, port: int) -> None:
        peer = self

        class Datagrams(asyncio.DatagramProtocol):
            def datagram_received(self, data: bytes, addr: object) -> None:
                peer.spawn(stream.send(data))

        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(Datagrams, remote_addr=(host, port))
        try:
            await self.socket.send(bytes((1, RESPONSE)) + stream.id + b"\1\0\0")
            while (data := await stream.queue.get()) is not None:
                transport.sendto(data)
        finally:
            transport.close()
            self.streams.pop(stream.id, None)


class User(Stream):
    """A stream of the Go gateway, as its user sees it."""

    error: str | None = None  # of the agent
    is_answered = False

    async def read(self) -> bytes:
        """The next piece; b"" at the end."""
        return await self.queue.get() or b""

    async def rest(self) -> bytes:
        found = bytearray()
        while data := await self.read():
            found += data
        return bytes(found)

    async def leave(self) -> None:
        await self.say_close()
        self.peer.streams.pop(self.id, None)


class GoGateway(Peer):
    """The Go gateway's session with one agent."""

    ports_answer = bytes.fromhex("01" "0000" "0000")

    def __init__(self, socket: Socket, headers: dict[str, str]) -> None:
        super().__init__(socket)
        self.headers = headers
        self.port_requests: list[bytes] = []
        self.answers: list[bytes] = []  # ids of CONNECT_RESPONSE
        self._numbers = itertools.count()

    async def open(self, address: str, early: bytes = b"", network: str = "tcp") -> User:
        """A stream; `early` follows at once."""
        wire_id = b"dc5rm3hksdufcocj%04d" % next(self._numbers)
        user = self.streams[wire_id] = User(self, wire_id)
        await self.socket.send(bytes((1, CONNECT)) + wire_id + text(network) + text(address))
        if early:
            await user.send(early)
        return user

    async def received(self, kind: int, body: bytes) -> bool:
        if kind == RESPONSE:
            self.answers.append(body[:20])
            user = self.streams.get(body[:20])
            if user is not None:
                user.is_answered = True
                if body[20] != 1:
                    user.error = texts(body[21:], 1)[0]
                    user.finish()
                    await user.leave()
            return True
        if kind == PORTS:
            self.port_requests.append(body)
            await self.socket.send(bytes((1, PORTS_RESPONSE)) + self.ports_answer)
            return True
        user = self.streams.get(body[:20]) if kind in (DATA, END) else None
        if user is not None and not user.is_answered:
            return True  # ignored
        if kind == END and user is not None:
            await user.say_close()
            self.streams.pop(user.id, None)
            user.finish()
            return True
        return await super().received(kind, body)


async def go_agent(port: int, certs: Certs, **headers: str) -> GoAgent:
    """Connect an agent to the gateway at `port`, as the Go program does."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=trusting_context(certs.ca), server_hostname=certs.name,
        ssl_shutdown_timeout=CLOSE_TIME,
    )  # fmt: skip
    request = upgrade_request(
        f"127.0.0.1:{port}", "/ws", "", X_Client_Id="c1-r0-dc5rm39ksdum8c63vhf0", **headers
    )
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 101 "):
        writer.close()
        raise ConnectionError(head.decode())
    return GoAgent(Socket(reader, writer, client=True))


@contextlib.asynccontextmanager
async def go_gateway(
    certs: Certs, on_session: Callable[[GoGateway], Any], *, refusal: str = ""
) -> AsyncIterator[int]:
    """A gateway for agents. Gives its port; `refusal` is the ERROR that each registration gets."""
    context = bare_context(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certs.cert, certs.key)
    sessions: list[GoGateway] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        lines = head.split("\r\n")[1:-2]
        headers = {name.lower(): value for name, _, value in (x.partition(": ") for x in lines)}
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept_for(headers["sec-websocket-key"]).encode()
            + b"\r\n\r\n"
        )  # fmt: skip
        socket = Socket(reader, writer, client=False)
        if refusal:
            await socket.send(bytes((1, ERROR)) + text(refusal))
            await socket.close()
            return
        sessions.append(GoGateway(socket, headers))
        on_session(sessions[-1])

    server = await asyncio.start_server(
        accept, "127.0.0.1", 0, ssl=context, ssl_shutdown_timeout=CLOSE_TIME
    )
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for session in sessions:
            await session.close()
        await server.wait_closed()
