"""Tunnels for tests: our client and server, applications and destinations, all in one loop.

Applications, destinations and foreign peers are plain sockets in the test's hands, so that a test
sees exactly how a connection ended: with FIN, with RST, or not at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Self

import pytest

from mtt import modes
from mtt.client import Client
from mtt.layers import anytls, anytls_client, keepalive, linger, mux, mux_tunnel, websocket
from mtt.options.tunnel import client_options, server_options
from mtt.outbound import anytls_pool, reuse
from mtt.server import Server
from mtt.tunnels import relay
from tests.support.certs import Certs
from tests.support.clock import Clock
from tests.support.faults import unacknowledged

# v2ray differs from wss in the client's request alone, which has tests of its own.
MODES = tuple(name for name in modes.MODES if name != "v2ray")
GO_MODES = tuple(mode.name for mode in modes.MODES.values() if mode.is_original)
MUX_MODES = ("mux", "wss+mux")
SESSION_MODES = tuple(mode.name for mode in modes.MODES.values() if mode.has_sessions)
in_every_mode = pytest.mark.parametrize("mode", MODES)
in_every_go_mode = pytest.mark.parametrize("mode", GO_MODES)
in_mux_modes = pytest.mark.parametrize("mode", MUX_MODES)

PASSWORD = "a password of the tests"
MEGABYTE = bytes(range(256)) * 4096

READ = 64 * 1024
# What is expected to happen on loopback "at once" gets so many seconds on a busy machine.
SOON = 5.0
# Seconds between two looks at something that reports no change.
LOOK = 0.01

# A size for the kernel's buffers of a connection, which otherwise grow to megabytes.
SMALL = 64 * 1024


def flags(mode: str) -> dict[str, Any]:
    """The command line options of a mode, for either end."""
    row = modes.MODES[mode]
    given: dict[str, Any] = dict.fromkeys(row.options, True)
    if row.has_password:
        # No idle session is kept: tests count what they have asked for.
        given |= {"p": PASSWORD, "m": 0}
    return given


class Tcp:
    """One end of a TCP connection. Reading raises ConnectionResetError when RST came."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._loop = asyncio.get_running_loop()
        self._ahead = b""

    async def send(self, data: bytes) -> None:
        await self._loop.sock_sendall(self.sock, data)

    async def read(self, size: int = READ) -> bytes:
        """Some bytes, at most `size`; b"" at the end."""
        if self._ahead:
            data, self._ahead = self._ahead[:size], self._ahead[size:]
            return data
        return await self._receive(size)

    async def _receive(self, size: int) -> bytes:
        return await self._loop.sock_recv(self.sock, size)

    async def exactly(self, size: int) -> bytes:
        """`size` bytes, or fewer at the end."""
        found = bytearray()
        while len(found) < size and (data := await self.read(size - len(found))):
            found += data
        return bytes(found)

    async def until(self, end: bytes) -> bytes:
        """Everything up to and with `end`, or up to the end of the stream."""
        found = b""
        while end not in found and (data := await self.read()):
            found += data
        size = found.find(end) + len(end) if end in found else len(found)
        self._ahead = found[size:] + self._ahead
        return found[:size]

    async def rest(self) -> bytes:
        """Everything up to the end."""
        found = bytearray()
        while data := await self.read():
            found += data
        return bytes(found)

    async def check_echo(self, data: bytes = b"x") -> None:
        """Check that the peer sends back what it gets."""
        await self.send(data)
        assert await self.exactly(len(data)) == data

    async def finish(self) -> None:
        """Say that nothing more comes; go on reading."""
        self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.sock.close()

    def reset(self) -> None:
        """Close with RST."""
        linger.reset_on_close(self.sock)
        self.sock.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()


async def connect(port: int, *, buffer: int = 0) -> Tcp:
    """Connect to a port of this machine; `buffer`: bytes for each of the kernel's buffers."""
    sock = socket.socket()
    shrink(sock, buffer)
    sock.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    except BaseException:
        sock.close()
        raise
    return Tcp(sock)


def shrink(sock: socket.socket, buffer: int) -> None:
    """Set the size of both kernel buffers; 0 leaves it to the kernel."""
    if buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)


class Listening:
    """A listening port whose connections the test accepts one by one."""

    def __init__(self, buffer: int = 0) -> None:
        self.sock = socket.socket()
        shrink(self.sock, buffer)
        self.sock.bind(("127.0.0.1", 0))
        self.sock.listen(1024)
        self.sock.setblocking(False)
        self.port: int = self.sock.getsockname()[1]
        self._accepted: list[Tcp] = []

    @property
    def count(self) -> int:
        """How many connections were accepted so far."""
        return len(self._accepted)

    async def accept(self) -> Tcp:
        sock, _ = await asyncio.get_running_loop().sock_accept(self.sock)
        connection = Tcp(sock)
        self._accepted.append(connection)
        return connection

    def close(self) -> None:
        self.sock.close()
        for connection in self._accepted:
            connection.close()


@contextlib.asynccontextmanager
async def listening(*, buffer: int = 0) -> AsyncIterator[Listening]:
    """A port; everything accepted on it is closed at the end."""
    there = Listening(buffer)
    try:
        yield there
    finally:
        there.close()


@contextlib.asynccontextmanager
async def serving(
    serve: Callable[[Tcp], Awaitable[None]], *, buffer: int = 0
) -> AsyncIterator[Listening]:
    """A port with `serve` run for each connection, which is closed afterwards.

    A connection that breaks fails no test; any other exception does so at the end.
    """
    failures: list[BaseException] = []
    tasks: set[asyncio.Task[None]] = set()

    async def handle(connection: Tcp) -> None:
        try:
            await serve(connection)
        except OSError:
            pass
        except Exception as error:
            failures.append(error)
        finally:
            connection.close()

    async def accept_all(there: Listening) -> None:
        while True:
            task = asyncio.create_task(handle(await there.accept()))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    async with listening(buffer=buffer) as there:
        acceptor = asyncio.create_task(accept_all(there))
        try:
            yield there
        finally:
            await cancel(acceptor, *tasks)
    if failures:
        raise failures[0]


async def cancel(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def echo(connection: Tcp) -> None:
    """A destination that answers with what it gets, and ends when its peer does."""
    while data := await connection.read():
        await connection.send(data)
    await connection.finish()


@contextlib.asynccontextmanager
async def server_at(mode: str, there: int, certs: Certs, **options: Any) -> AsyncIterator[Server]:
    """Our server in front of a port of this machine; `options` as on its command line."""
    given = {"b": "127.0.0.1:0", "d": f"127.0.0.1:{there}", **flags(mode)}
    if not options.get("disable-tls"):
        given |= {"cert": certs.cert, "key": certs.key}
    server = Server(server_options(given | options))
    async with running(server):
        yield server


@contextlib.asynccontextmanager
async def client_of(mode: str, server: int, certs: Certs, **options: Any) -> AsyncIterator[Client]:
    """Our client of the server on a port of this machine; `options` as on its command line.

    `plugin=True` makes it one that shadowsocks started.
    """
    plugin = options.pop("plugin", False)
    given = {
        "b": "127.0.0.1:0", "s": f"127.0.0.1:{server}", "n": certs.name, "ca": certs.ca,
        **flags(mode),
    }  # fmt: skip
    if options.get("sv") or options.get("pin"):
        del given["ca"]
    client = Client(client_options(given | options, plugin=plugin))
    async with running(client):
        yield client


@contextlib.asynccontextmanager
async def running(service: Client | Server) -> AsyncIterator[None]:
    await service.start()
    try:
        yield
    finally:
        await service.close()


@contextlib.asynccontextmanager
async def both_ends(
    mode: str, destination: int, certs: Certs, **options: Any
) -> AsyncIterator[tuple[Server, Client]]:
    """Server and client, with the same `options`."""
    async with (
        server_at(mode, destination, certs, **options) as server,
        client_of(mode, port_of(server), certs, **options) as client,
    ):
        yield server, client


@contextlib.asynccontextmanager
async def tunnel(mode: str, destination: int, certs: Certs, **options: Any) -> AsyncIterator[int]:
    """Both ends, with the same `options`; the port for applications."""
    async with both_ends(mode, destination, certs, **options) as (_, client):
        yield port_of(client)


@contextlib.asynccontextmanager
async def joined(mode: str, there: Listening, certs: Certs) -> AsyncIterator[tuple[Tcp, Tcp]]:
    """An application and the destination's end of its tunnel."""
    async with tunnel(mode, there.port, certs) as port, await connect(port) as application:
        yield application, await there.accept()


def port_of(service: Any) -> int:
    return int(service.addresses[0].rpartition(":")[2])


async def eventually(condition: Callable[[], object], seconds: float = SOON) -> None:
    """Wait until `condition()` holds; fail when it takes longer than `seconds`.

    They are counted in looks, not by the clock: on a busy machine each look comes later, as does
    what it looks for.
    """
    for _ in range(math.ceil(seconds / LOOK)):
        if condition():
            return
        await asyncio.sleep(LOOK)
    assert condition(), f"not within {seconds:g} s"


def clock_of_tunnels(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock for what finds out, at both ends, that a tunnel is silent, idle or dead.

    Dialling and handshakes go by the real one.
    """
    layers = anytls, anytls_client, keepalive, linger, mux, mux_tunnel, websocket
    return Clock(monkeypatch, relay, reuse, anytls_pool, *layers)


async def settled() -> None:
    """Wait until everything that is under way has arrived.

    All ends of it run in this loop, so that is a matter of the loop's turns, not of seconds.
    """
    for _ in range(50):
        await asyncio.sleep(0.001)


def empty(service: Client | Server) -> bool:
    """Whether the service holds nothing any more of the connections it had."""
    held: list[Any] = [service.open_tunnels]
    if isinstance(service, Server):
        held += [service._frontend.handshakes, service._frontend._sessions]
    return not any(held)


async def fill(end: Tcp, patience: float = 0.3) -> bytes:
    """Send until nothing moves for `patience` seconds; returns what was sent.

    Little of it is on this side then: the buffers behind are full.
    """
    sent = bytearray()
    moved = time.monotonic()
    while time.monotonic() - moved < patience:
        if unsent(end):
            await asyncio.sleep(0.002)
        else:
            moved = time.monotonic()
            piece = os.urandom(READ)
            await end.send(piece)
            sent += piece
    return bytes(sent)


def unsent(end: Tcp) -> int:
    """How many bytes that `end` sent are not in the other side's kernel yet."""
    return unacknowledged(end.sock)


async def check_works(port: int, data: bytes = b"still works") -> None:
    """Send through a tunnel to an echoing destination and check what comes back."""
    async with asyncio.timeout(SOON), await connect(port) as application:
        await application.check_echo(data)


def maybe_reset() -> contextlib.suppress:
    """Lets a reset end the reading in a block."""
    return contextlib.suppress(ConnectionResetError)


@contextlib.contextmanager
def logged(level: int = logging.INFO) -> Iterator[list[str]]:
    """The lines that our log gets meanwhile, as `LEVEL text`."""
    lines: list[str] = []
    logger = logging.getLogger("mtt")
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(  # type: ignore[method-assign]
        f"{record.levelname} {record.getMessage()}"
    )
    before = logger.level
    logger.setLevel(level)
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
