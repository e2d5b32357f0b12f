"""Help for the tests of the transport at the bottom."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from mtt.layers import linger, poller
from mtt.layers.base import Data
from mtt.layers.tcp import SocketTransport
from tests.support.programs import require_package
from tests.support.transports import Recorder, attach, tcp_sockets

LOOPS = ["own", "plain", "plain without epoll", "uvloop", "uvloop without epoll"]


@pytest.fixture(autouse=True, params=LOOPS)
def on_every_loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, *without = request.param.split(maxsplit=1)
    if loop == "uvloop":
        require_package("uvloop")
    if without:
        monkeypatch.setattr(poller, "EpollPoller", poller.LoopPoller)
    monkeypatch.setenv("MTT_TEST_LOOP", loop)


class Told(Recorder):
    """Counts what must come once only, and fails in the method called `fails`."""

    def __init__(self, *, stay: bool = True, fails: str = "") -> None:
        super().__init__(stay=stay)
        self.ends = self.resumes = 0
        self.fails = fails
        self.bug = RuntimeError("a bug")
        self.begin: Callable[[SocketTransport], object] = lambda _: None

    def _fail(self, name: str) -> None:
        if self.fails == name:
            raise self.bug

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.begin(transport)
        self._fail("connection_made")

    def data_received(self, data: Data) -> None:
        super().data_received(data)
        self._fail("data_received")

    def eof_received(self) -> bool:
        self.ends += 1
        self._fail("eof_received")
        return super().eof_received()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._fail("pause_writing")

    def resume_writing(self) -> None:
        super().resume_writing()
        self.resumes += 1
        self._fail("resume_writing")

    def connection_lost(self, exc: Exception | None) -> None:
        assert self.transport.get_extra_info("socket").fileno() >= 0, "closed before it was told"
        super().connection_lost(exc)
        self._fail("connection_lost")


class Narrow(socket.socket):
    """Has room for `room` bytes, whatever the kernel has."""

    room = 0

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(fileno=sock.detach())
        self.gathered: list[int] = []

    def send(self, data: Any, flags: int = 0) -> int:
        if not self.room:
            raise BlockingIOError
        sent = super().send(memoryview(data)[: self.room], flags)
        self.room -= sent
        return sent

    def sendmsg(self, buffers: Iterable[Any], *_: Any) -> int:
        pieces = list(buffers)
        self.gathered.append(len(pieces))
        return self.send(b"".join(pieces))


@contextlib.contextmanager
def narrow(recorder: Told) -> Iterator[tuple[Narrow, SocketTransport, socket.socket]]:
    sock, far = tcp_sockets()
    near = Narrow(sock)
    transport = attach(near, recorder)
    try:
        yield near, transport, far
    finally:
        far.close()
        transport.abort()


@contextlib.contextmanager
def reports() -> Iterator[list[BaseException]]:
    """What the loop's exception handler gets, which would fail the test."""
    loop = asyncio.get_running_loop()
    found: list[BaseException] = []
    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda _loop, context: found.append(context["exception"]))
    yield found
    loop.set_exception_handler(before)


def mutable_view(data: bytes) -> memoryview:
    return memoryview(bytearray(data))


def reset(sock: socket.socket) -> None:
    linger.reset_on_close(sock)
    sock.close()


async def exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += await asyncio.get_running_loop().sock_recv(sock, count - len(data)) or b"THE END"
    return data


async def at_end(sock: socket.socket) -> bool:
    return not await asyncio.get_running_loop().sock_recv(sock, 1)
