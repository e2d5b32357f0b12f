"""The relay on real sockets: half-close, resets and unacknowledged data in the kernel."""

from __future__ import annotations

import asyncio
import fcntl
import random
import socket
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from mtt.layers import linger
from mtt.layers.parked import Parked
from mtt.tunnels import relay as module
from mtt.tunnels.relay import Relay
from tests.support.certs import Certs
from tests.support.stacks import Stack
from tests.support.transports import attach, tcp_sockets, turns
from tests.support.tunnels import eventually


@pytest.fixture(autouse=True)
def _short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUIET_TIME", 0.08)
    monkeypatch.setattr(module, "QUIET_INTERVALS", (0.01, 0.01))


@asynccontextmanager
async def real_tunnel() -> AsyncIterator[tuple[socket.socket, socket.socket, list[Relay]]]:
    """An application and a destination, connected by a relay."""
    over: list[Relay] = []
    app, near = tcp_sockets(small=True)
    far, destination = tcp_sockets(small=True)
    transports = [attach(sock, Parked()) for sock in (near, far)]
    relay = Relay(transports[0], transports[1], timeout=20, done=over.append)
    try:
        yield app, destination, over
    finally:
        app.close()
        destination.close()
        relay.abort("the test is over")
        await turns()


def kernel_queue(sock: socket.socket) -> int:
    """Bytes that the other end's kernel has not acknowledged."""
    answer: bytes = fcntl.ioctl(sock, termios.TIOCOUTQ, b"\0\0\0\0")
    return int.from_bytes(answer, "little")


async def drain(sock: socket.socket) -> bytes:
    data = bytearray()
    while piece := await asyncio.get_running_loop().sock_recv(sock, 65536):
        data += piece
    return bytes(data)


async def test_half_close_end_to_end() -> None:
    loop = asyncio.get_running_loop()
    async with real_tunnel() as (app, destination, over):
        request = random.Random(91).randbytes(600_000)
        sending = asyncio.create_task(loop.sock_sendall(app, request))
        sending.add_done_callback(lambda _task: app.shutdown(socket.SHUT_WR))
        assert await drain(destination) == request
        sending = asyncio.create_task(loop.sock_sendall(destination, request[::-1]))
        sending.add_done_callback(lambda _task: destination.close())
        assert await drain(app) == request[::-1]
        app.close()
        await eventually(lambda: over)
        assert over[0].reason == "done"


async def test_stopped_reader_stops_the_sender() -> None:
    async with real_tunnel() as (app, _destination, _over):
        sent = still = 0
        while still < 60:
            try:
                sent += app.send(b"x" * 65536)
                still = 0
            except BlockingIOError:
                still += 1
            await asyncio.sleep(0)
            assert sent < 3_000_000


@pytest.mark.parametrize("swap", [False, True])
async def test_reset_is_passed_on(swap: bool) -> None:
    loop = asyncio.get_running_loop()
    async with real_tunnel() as (app, destination, over):
        one, other = (destination, app) if swap else (app, destination)
        await loop.sock_sendall(one, b"begun")
        assert await loop.sock_recv(other, 10) == b"begun"
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger._RESET)
        one.close()
        with pytest.raises(ConnectionResetError):
            await drain(other)
        await eventually(lambda: over)


@pytest.mark.parametrize("half_close", [False, True])
@pytest.mark.parametrize("talkative", [False, True])
async def test_upload_completes_after_the_application_is_lost(
    talkative: bool, half_close: bool, certs: Certs
) -> None:
    # The application closes right after its upload and never reads the destination's data. Its
    # kernel answers our writes with a reset, which goes unnoticed while the relay waits for silence
    # before it sends the end.
    loop = asyncio.get_running_loop()
    data = random.Random(92).randbytes(800_000)
    over: list[Relay] = []
    app, near = tcp_sockets()
    async with Stack("", ("tls",), half_close=half_close).open(certs) as (client, server):
        client.transport.pause_reading()
        if talkative:
            server.recorder.on_data = lambda _piece: server.transport.write(b".")
        transport = attach(near, Parked())
        Relay(transport, client.transport, timeout=20, done=over.append)
        await loop.sock_sendall(app, data)
        app.shutdown(socket.SHUT_WR)
        await eventually(lambda: not kernel_queue(app))
        app.close()  # with unread input, that is a reset
        assert await server.recorder.at_eof() == data
        server.close()
        await eventually(lambda: over)
        assert over[0].reason == "done"


async def test_final_data_of_a_closed_destination_is_delivered() -> None:
    loop = asyncio.get_running_loop()
    async with real_tunnel() as (app, destination, over):
        await loop.sock_sendall(app, b"x" * 100_000)  # the destination never reads it
        await loop.sock_recv(destination, 1)
        await loop.sock_sendall(destination, b"HTTP/1.1 413 Too Large\r\n\r\n")
        destination.shutdown(socket.SHUT_WR)
        assert await drain(app) == b"HTTP/1.1 413 Too Large\r\n\r\n"
        destination.close()
        app.close()
        await eventually(lambda: over)
