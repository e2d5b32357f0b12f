"""-udp in a configuration file that changes while its tunnels run."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mtt.udp.port import UdpPort
from tests.support.certs import Certs
from tests.support.several import File, running, trusting
from tests.support.tunnels import SOON, check_works, echo, logged, server_at, serving
from tests.tunnels.test_reload import House, client, content
from tests.udp.peers import Udp, answering


@contextlib.asynccontextmanager
async def house(folder: Path, certs: Certs, **options: object) -> AsyncIterator[House]:
    """A client with a tunnel `one` of these options, and a server with -udp."""
    async with serving(echo) as there, contextlib.AsyncExitStack() as stack:
        stack.enter_context(answering(port=there.port))
        server = await stack.enter_async_context(server_at("tls", there.port, certs, udp=True))
        top = trusting(certs)
        tunnel = client(server, "one", **options)
        file = File(folder, content(top, tunnel), "mtt-client")
        lines = stack.enter_context(logged())
        async with asyncio.timeout(2 * SOON), running(file) as tunnels:
            yield House(file, tunnels, server, top, lines)


async def test_flows_go_on_when_their_tunnel_changes(certs: Certs, tmp_path: Path) -> None:
    async with house(tmp_path, certs, udp=True) as run:
        port = run.port("one")
        with Udp(port) as application:
            await application.check_echo(b"before")
            await run.change("1 tunnel changed", run.at("one", udp=True, timeout="1m"))
            assert run.port("one") == port
            await application.check_echo(b"after")


async def test_udp_is_switched_on_and_off(certs: Certs, tmp_path: Path) -> None:
    async with house(tmp_path, certs) as run:
        port = run.port("one")
        await run.change("1 tunnel changed", run.at("one", udp=True))
        assert run.port("one") == port
        with Udp(port) as application:
            await application.check_echo(b"on")
            await run.change("1 tunnel changed", run.at("one"))
            with pytest.raises(ConnectionRefusedError):
                application.send(b"off")
                application.send(b"off")
        await check_works(port)


async def test_former_tunnel_goes_on_if_the_new_one_cannot(
    certs: Certs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house(tmp_path, certs, udp=True) as run:
        with Udp(run.port("one")) as application:
            await application.check_echo(b"before")

            def start(*_: object) -> None:
                monkeypatch.undo()
                raise OSError("no more")

            monkeypatch.setattr(UdpPort, "start", start)
            await run.change("not reloaded", run.at("one", udp=True, timeout="1m"))
        with Udp(run.port("one")) as application:  # port 0 draws another one
            await application.check_echo(b"after")
