"""Sockets of attempts that lost, were cancelled or failed: all of them are closed."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any

import pytest

from mtt.address import Endpoint
from mtt.layers.base import StreamProtocol
from mtt.net import dial
from mtt.net.dial import Dialer
from mtt.net.resolve import Resolver
from tests.net.dialing import FixedResolver, Holder
from tests.support.loopback import linux_only, listening
from tests.support.programs import require_package


async def test_losers_are_closed_also_if_they_connected(monkeypatch):
    """In the next turn of the loop."""
    monkeypatch.setattr(dial, "ATTEMPT_DELAY", 0.0)
    with listening() as first, listening("127.0.0.2") as second:
        attempts: list[int] = []  # descriptors
        both = asyncio.Event()

        async def protect(sock: socket.socket) -> None:
            attempts.append(sock.fileno())
            if len(attempts) == 2:
                both.set()
            await both.wait()

        resolver = FixedResolver({"a": [first.getsockname(), second.getsockname()]})
        transport = await Dialer(resolver, protect=protect).connect(
            Endpoint(("a",), 1), asyncio.Protocol
        )
        (loser,) = set(attempts) - {transport.get_extra_info("socket").fileno()}
        await asyncio.sleep(0)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(loser)
        transport.abort()


@pytest.mark.parametrize("count", [1, 3])
async def test_cancelled_connect_closes_its_sockets(monkeypatch, count):
    monkeypatch.setattr(dial, "ATTEMPT_DELAY", 0.0)
    holder = Holder(held=count)
    resolver = FixedResolver({"a": [(f"127.0.0.{i + 1}", 1) for i in range(count)]})
    dialer = Dialer(resolver, protect=holder)
    task = asyncio.create_task(dialer.connect(Endpoint(("a",), 1), StreamProtocol))
    await holder.reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert holder.all_closed()
    assert len(asyncio.all_tasks()) == 1


async def test_cancelling_at_any_step_leaks_nothing(monkeypatch):
    """Cancel after 0, 1, 2... turns of the loop; the test's own check finds what stays open."""
    monkeypatch.setattr(dial, "ATTEMPT_DELAY", 0.0)
    with listening() as first, listening("127.0.0.2") as second:
        resolver = FixedResolver({"a": [first.getsockname(), second.getsockname()]})
        for turns in range(30):
            dialer = Dialer(resolver)
            task = asyncio.create_task(dialer.connect(Endpoint(("a",), 1), StreamProtocol))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            try:
                (await task).abort()
            except asyncio.CancelledError:
                continue
            break
        else:
            raise AssertionError("never connected")
        assert turns > 2


@linux_only
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_cancelled_connection_is_reset(monkeypatch, loop):
    """Whichever turn of the loop the end comes in; but an ordinary end is one."""
    factory = asyncio.new_event_loop
    if loop == "uvloop":
        factory = require_package("uvloop").new_event_loop
    resets = 0

    async def cancelled_after(turns: int, endpoint: Endpoint) -> bool:
        task = asyncio.create_task(Dialer(Resolver()).connect(endpoint, StreamProtocol))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        try:
            (await task).close()
        except asyncio.CancelledError:
            return True
        finally:
            await asyncio.sleep(0.01)  # a transport closes in a later turn
        return False

    monkeypatch.setattr(dial, "_connected_at_once", lambda *_: False)
    with listening() as server, asyncio.Runner(loop_factory=factory) as runner:
        server.settimeout(0.05)
        endpoint = Endpoint(("127.0.0.1",), server.getsockname()[1])
        for turns in range(100):  # a busy kernel may need more than a few
            cancelled = runner.run(cancelled_after(turns, endpoint))
            try:
                sock, _ = server.accept()
            except TimeoutError:
                continue  # it was not even begun
            with sock:
                if not cancelled:
                    assert sock.recv(1) == b""
                    break
                with pytest.raises(ConnectionResetError):
                    sock.recv(1)
                resets += 1
        else:
            raise AssertionError("never connected")
    assert resets or loop == "uvloop"  # its turns are not ours to count


async def test_protocol_factory_that_fails_closes_the_socket():
    def fail() -> asyncio.Protocol:
        raise RuntimeError("no protocol")

    seen: list[socket.socket] = []

    async def protect(sock: socket.socket) -> None:
        seen.append(sock)

    with listening() as server:
        endpoint = Endpoint(("127.0.0.1",), server.getsockname()[1])
        with pytest.raises(RuntimeError):
            await Dialer(Resolver(), protect=protect).connect(endpoint, fail)
    assert seen[0].fileno() == -1


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("name", ["asyncio", "uvloop"])
def test_protocol_that_aborts_at_once_gets_a_closing_transport(name: str, asked: bool) -> None:
    loops: dict[str, Any] = {"asyncio": asyncio.SelectorEventLoop}
    if name == "uvloop":
        loops[name] = require_package("uvloop").new_event_loop

    class LostAtOnce(StreamProtocol):
        def connection_made(self, transport: Any) -> None:
            assert not asked or transport.get_extra_info("socket").fileno() >= 0
            transport.abort()

    async def scenario() -> None:
        with listening() as server:
            endpoint = Endpoint(("127.0.0.1",), server.getsockname()[1])
            transport = await Dialer(Resolver()).connect(endpoint, LostAtOnce)
            assert transport.is_closing()
            await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=loops[name]) as runner:
        runner.run(scenario())
