"""Accepting connections, and resting when there are no descriptors left for them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from mtt.layers.base import StreamProtocol
from mtt.net import accept
from mtt.net.accept import Acceptor
from tests.support.tunnels import SOON, Tcp, connect, eventually

resource = pytest.importorskip("resource", reason="no limit of descriptors here")

WAIT = "accepting paused until connections end: "


class Kept(StreamProtocol):
    """Greets, and stays."""

    def __init__(self, all_of_them: list[asyncio.Transport]) -> None:
        self._all = all_of_them

    def connection_made(self, transport: Any) -> None:
        self._all.append(transport)
        transport.write(b"!")

    def connection_lost(self, exc: Exception | None) -> None:
        """It stays among those that came."""


class Port:
    """A listening port, and what was accepted there."""

    def __init__(self, *, use_reserve: bool = False, **more: Any) -> None:
        self.accepted: list[asyncio.Transport] = []
        factory = more.get("factory", lambda: Kept(self.accepted))
        sockets = [socket.create_server(("127.0.0.1", 0), backlog=128)]
        yields = more.get("yields")
        self.acceptor = Acceptor(sockets, factory, use_reserve=use_reserve, yields=yields)
        self.number: int = self.acceptor.sockets[0].getsockname()[1]

    def close(self) -> None:
        self.acceptor.close()
        for transport in self.accepted:
            transport.abort()


@contextlib.asynccontextmanager
async def port(**arguments: Any) -> AsyncIterator[Port]:
    there = Port(**arguments)
    try:
        yield there
    finally:
        there.close()


@contextlib.asynccontextmanager
async def crowd(number: int, size: int) -> AsyncIterator[list[Tcp]]:
    applications = [await connect(number) for _ in range(size)]
    try:
        yield applications
    finally:
        for application in applications:
            application.close()


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accept, "REST_TIME", 0.02)


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(logging.getLogger("mtt"), "propagate", True)
    caplog.set_level(logging.INFO, "mtt")
    yield lambda: [record.getMessage() for record in caplog.records]


@contextlib.contextmanager
def free_descriptors(count: int) -> Iterator[None]:
    """So many descriptors are left to this process meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free() + count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def lowest_free() -> int:
    number = os.dup(0)
    os.close(number)
    return number


async def is_served(application: Tcp) -> bool:
    async with asyncio.timeout(SOON):
        return await application.exactly(1) == b"!"


async def has_to_wait(application: Tcp) -> bool:
    """Whether nothing comes for a while, also when it was tried again several times."""
    try:
        async with asyncio.timeout(10 * accept.REST_TIME):
            await application.exactly(1)
    except TimeoutError:
        return True
    return False


async def test_connections_wait_while_descriptors_are_scarce(often: None, lines: Any) -> None:
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as stack:
        # The applications' own descriptors are in this process too: made before it gets tight.
        late = [Tcp(stack.enter_context(socket.socket())) for _ in range(5)]
        async with port() as there, crowd(there.number, 20) as applications:
            await eventually(lambda: len(there.accepted) == 20)
            with free_descriptors(100):
                limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
                for _ in range(100 - limit // accept.RESERVED_PART):
                    stack.callback(os.close, os.dup(0))
                for application in late:
                    application.sock.setblocking(False)
                    await loop.sock_connect(application.sock, ("127.0.0.1", there.number))
                # The one whose coming showed that it is tight is in; the others wait, unharmed.
                assert await is_served(late[0])
                assert await has_to_wait(late[1])
                assert len(there.accepted) == 21
                assert lines() == [
                    f"{WAIT}almost all descriptors are in use; raise their limit, {limit} "
                    "(ulimit -n, or LimitNOFILE= of systemd)"
                ]
                for application in applications:
                    application.close()
                for transport in there.accepted[:20]:
                    transport.abort()
                for application in late[1:]:
                    assert await is_served(application)
                assert lines()[1:] == ["accepting resumed"]


async def test_reserve_is_for_monitoring(often: None, lines: Any) -> None:
    async with port(use_reserve=True) as there:
        with socket.socket() as sock:
            sock.setblocking(False)
            with free_descriptors(3):
                await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", there.number))
                assert await is_served(Tcp(sock))
        assert lines() == []


async def test_accepting_resumes_when_a_descriptor_is_free(often: None, lines: Any) -> None:
    async with port(use_reserve=True) as there:
        with socket.socket() as sock:
            sock.setblocking(False)
            with free_descriptors(0):
                await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", there.number))
                assert await has_to_wait(Tcp(sock))
                limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            assert await is_served(Tcp(sock))
        assert lines() == [
            f"{WAIT}too many open files; raise their limit, {limit} (ulimit -n, or "
            "LimitNOFILE= of systemd)",
            "accepting resumed",
        ]


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (errno.ENOMEM, f"{WAIT}cannot allocate memory"),
        (errno.ENFILE, f"{WAIT}too many open files in system"),
    ],
)
async def test_other_shortages_pause_accepting(
    number: int, line: str, often: None, lines: Any
) -> None:
    async with port() as there, crowd(there.number, 1) as (application,):
        assert await is_served(application)
        there.acceptor._accept(Failing(number))  # type: ignore[arg-type]
        async with crowd(there.number, 1) as (another,):
            assert await is_served(another)
    assert lines() == [line, "accepting resumed"]


class Failing:
    """A listening socket whose accept() fails."""

    def __init__(self, number: int) -> None:
        self._number = number

    def accept(self) -> None:
        raise OSError(self._number, "x")


async def test_shortage_is_logged_rarely(
    often: None, lines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(accept.time, "monotonic", lambda: now)
    async with port() as there:
        for seconds in (0.0, 0.0, 1.0, accept.LOG_INTERVAL - 1):
            now = seconds
            there.acceptor._pause("x", limited=False)
            assert there.acceptor._rest is not None
            there.acceptor._rest.cancel()
            there.acceptor._resume()
        assert lines() == [f"{WAIT}x", "accepting resumed"]
        now = accept.LOG_INTERVAL
        there.acceptor._pause("y", limited=False)
        assert lines()[2:] == [f"{WAIT}y"]


async def test_close_while_accepting_is_paused(often: None) -> None:
    async with port() as there:
        there.acceptor._pause("x", limited=False)
        there.close()
        await asyncio.sleep(2 * accept.REST_TIME)
        there.acceptor._pause("x", limited=False)  # also closed in the very moment
        with pytest.raises(ConnectionRefusedError):
            await connect(there.number)


async def test_failing_protocol_factory_loses_only_its_connection() -> None:
    reported: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    handler = loop.get_exception_handler()
    loop.set_exception_handler(lambda _loop, context: reported.append(context))

    class Once:
        def __init__(self) -> None:
            self.calls = 0
            self.accepted: list[asyncio.Transport] = []

        def __call__(self) -> asyncio.Protocol:
            self.calls += 1
            if self.calls == 1:
                raise ValueError("no")
            return Kept(self.accepted)

    factory = Once()
    try:
        async with port(factory=factory) as there, crowd(there.number, 2) as (one, two):
            assert await is_served(two)
            assert await one.rest() == b""
            for transport in factory.accepted:
                transport.abort()
    finally:
        loop.set_exception_handler(handler)
    assert [str(context["exception"]) for context in reported] == ["no"]


async def test_burst_of_connections_does_not_starve_tunnels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(accept, "BURST", 3)
    async with port() as there:
        listening = there.acceptor.sockets[0]
        asyncio.get_running_loop().remove_reader(listening)
        async with crowd(there.number, 8):
            taken = []
            for _ in range(3):
                before = len(there.accepted)
                there.acceptor._accept(listening)
                taken.append(len(there.accepted) - before)
    assert taken == [3, 3, 2]


async def test_connections_left_by_other_processes_are_accepted() -> None:
    heavy = True
    async with port(yields=lambda: heavy) as there:
        other = there.acceptor.sockets[0].dup()  # as another process has it
        with other:
            other.setblocking(False)
            async with crowd(there.number, 1) as (one,):
                sock, _ = await asyncio.get_running_loop().sock_accept(other)
                with sock:
                    await asyncio.sleep(0.01)
                    assert not there.accepted
                    sock.sendall(b"?")
                    assert await one.exactly(1) == b"?"
        async with crowd(there.number, 3):
            await eventually(lambda: len(there.accepted) == 3)
        heavy = False
        async with crowd(there.number, 3):
            await eventually(lambda: len(there.accepted) == 6)
        assert not there.acceptor._yielding


async def test_closing_while_yielding_to_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accept, "YIELD_TIME", 600.0)
    async with port(yields=lambda: True) as there, crowd(there.number, 1):
        await eventually(lambda: there.acceptor._yielding)
        (timer,) = there.acceptor._yielding.values()
        there.acceptor.close()
        assert timer.cancelled()
        assert not there.accepted
