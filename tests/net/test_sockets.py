from __future__ import annotations

import asyncio
import errno
import gc
import os
import socket
from collections.abc import Callable
from typing import Any

import pytest

from mtt.net.sockets import opened, source_address


def test_the_address_that_leads_to_a_peer() -> None:
    assert source_address(("127.0.0.1", 443)) == "127.0.0.1"
    if socket.has_ipv6:
        assert source_address(("::1", 443, 0, 0)) in ("::1", None)  # None: IPv6 is switched off


def test_nothing_leads_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert source_address("/run/a.sock") is None
    assert source_address(None) is None

    class Unreachable(socket.socket):
        def connect(self, address: Any) -> None:
            raise OSError(errno.ENETUNREACH, "Network is unreachable")

    monkeypatch.setattr(socket, "socket", Unreachable)
    assert source_address(("192.0.2.1", 443)) is None


@pytest.mark.parametrize("kind", ["connected", "accepted", "unix"])
@pytest.mark.parametrize("name", ["asyncio", "uvloop"])
def test_a_connection_that_is_lost_at_once_closes_its_descriptor_once(name: str, kind: str) -> None:
    """Otherwise it closes that of another connection, which has got the same number meanwhile."""
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]]
    loops = {"asyncio": asyncio.SelectorEventLoop}
    if name == "uvloop":
        loops[name] = pytest.importorskip("uvloop").new_event_loop
    others: list[int] = []

    class LostAtOnce(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            transport.abort()
            # In the next turn, like somebody who has waited for that.
            asyncio.get_running_loop().call_soon(lambda: others.append(os.dup(0)))

    async def connect(sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        opening: Any
        if kind == "connected":
            opening = loop.create_connection(LostAtOnce, sock=sock)
        elif kind == "accepted":
            opening = loop.connect_accepted_socket(LostAtOnce, sock)
        else:
            opening = loop.create_unix_connection(LostAtOnce, sock=sock)
        await opened(sock, opening)

    async def scenario() -> None:
        if kind == "unix":
            ours, theirs = socket.socketpair()
        else:
            with socket.create_server(("127.0.0.1", 0)) as server:
                theirs = socket.create_connection(server.getsockname())
                ours, _ = server.accept()
        with theirs:
            ours.setblocking(False)
            number = ours.fileno()
            connecting = asyncio.ensure_future(connect(ours))
            del ours
            await connecting
            del connecting
            await asyncio.sleep(0)
            gc.collect()
            (other,) = others
            assert name != "uvloop" or other == number  # or there is nothing to see
            os.close(other)  # raises OSError if it was closed

    with asyncio.Runner(loop_factory=loops[name]) as runner:
        runner.run(scenario())
