"""Half-close between our own ends: each direction ends by itself, in every mode."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator

import pytest

from mtt.tunnels import relay
from tests.support.certs import Certs
from tests.support.faults import FaultProxy, Line
from tests.support.gopeer import tls_connect
from tests.support.tunnels import (
    SOON,
    Listening,
    Tcp,
    client_of,
    connect,
    empty,
    eventually,
    in_every_mode,
    in_mux_modes,
    listening,
    port_of,
    server_at,
    tunnel,
)

REPLY = os.urandom(300_000)


@pytest.fixture(autouse=True)
def never_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for the quiet rule, meant for Go peers, would wait too long for these tests."""
    monkeypatch.setattr(relay, "QUIET_TIME", 3600.0)


@contextlib.asynccontextmanager
async def connected(mode: str, certs: Certs) -> AsyncIterator[tuple[Tcp, Listening]]:
    """An application, and the destination that has not accepted its tunnel yet."""
    async with (
        listening() as there,
        tunnel(mode, there.port, certs) as port,
        asyncio.timeout(SOON),
        await connect(port) as application,
    ):
        yield application, there


@in_every_mode
async def test_half_close_delivers_reply(mode: str, certs: Certs) -> None:
    async with connected(mode, certs) as (application, there):
        await application.send(b"request")
        await application.finish()
        destination = await there.accept()
        assert await destination.rest() == b"request"
        await destination.send(REPLY)
        await destination.finish()
        assert await application.rest() == REPLY


@in_every_mode
async def test_the_destination_may_end_first_and_still_receive(mode: str, certs: Certs) -> None:
    async with connected(mode, certs) as (application, there):
        destination = await there.accept()
        await destination.send(b"banner")
        await destination.finish()
        assert await application.rest() == b"banner"
        await application.send(REPLY)
        await application.finish()
        assert await destination.rest() == REPLY


@pytest.mark.parametrize("how", ["answered", "leaves"])
async def test_foreign_client_gets_reply_after_its_close_notify(
    how: str, certs: Certs, short_linger: None
) -> None:
    """Without ALPN, like stunnel. When it closes TCP as well, both directions are over."""
    async with (
        listening() as there,
        server_at("tls", there.port, certs) as server,
        asyncio.timeout(SOON),
        await tls_connect(port_of(server), certs) as application,
    ):
        await application.send(b"request")
        await application.finish()
        destination = await there.accept()
        assert await destination.rest() == b"request"
        await destination.send(REPLY)
        if how == "answered":
            await destination.finish()
            assert await application.rest() == REPLY
        else:
            assert await application.exactly(len(REPLY)) == REPLY
            application.sock.shutdown(socket.SHUT_WR)
            assert await application.rest() == b""  # close_notify, not a cut
        await eventually(lambda: empty(server))


@in_every_mode
@pytest.mark.parametrize("first", ["application", "destination"])
async def test_half_close_on_a_line_slower_than_the_quiet_time(
    first: str, mode: str, certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An end that wants to end at once cannot know yet that the other one is ours, and must ask."""
    monkeypatch.setattr(relay, "QUIET_TIME", 0.03)
    monkeypatch.setattr(relay, "QUIET_INTERVALS", (0.01, 0.01))
    async with (
        listening() as there,
        server_at(mode, there.port, certs) as server,
        FaultProxy(port_of(server), line=Line(delay=0.1)) as line,
        client_of(mode, line.port, certs) as client,
        asyncio.timeout(2 * SOON),
        await connect(port_of(client)) as application,
    ):
        if first == "application":
            await application.finish()
        async with await there.accept() as destination:
            ends = destination, application
            if first == "application":
                ends = application, destination
            else:
                await destination.finish()
            assert await ends[1].rest() == b""
            await ends[1].send(REPLY)
            await ends[1].finish()
            assert await ends[0].rest() == REPLY


@in_every_mode
async def test_a_reset_of_either_end_resets_the_other(mode: str, certs: Certs) -> None:
    async with listening() as there, tunnel(mode, there.port, certs) as port:
        async with asyncio.timeout(SOON), await connect(port) as application:
            await application.send(b"x")
            destination = await there.accept()
            assert await destination.read() == b"x"
            application.reset()
            with pytest.raises(ConnectionResetError):
                await destination.read()
        async with asyncio.timeout(SOON), await connect(port) as application:
            await application.send(b"x")
            destination = await there.accept()
            assert await destination.read() == b"x"
            destination.reset()
            with pytest.raises(ConnectionResetError):
                await application.read()


@in_every_mode
async def test_a_reset_after_a_half_close_is_seen(mode: str, certs: Certs) -> None:
    async with connected(mode, certs) as (application, there):
        await application.finish()
        destination = await there.accept()
        assert await destination.rest() == b""
        destination.reset()
        with pytest.raises(ConnectionResetError):
            await application.read()


@in_mux_modes
async def test_sender_to_a_gone_application_fails_in_the_end(
    mode: str, certs: Certs, short_linger: None
) -> None:
    """The application said all it had to say and went away; its stream must not be fed for ever."""
    async with listening() as there, tunnel(mode, there.port, certs) as port:
        async with asyncio.timeout(SOON):
            application = await connect(port)
            await application.send(b"upload")
            await application.finish()
            destination = await there.accept()
            assert await destination.rest() == b"upload"
            application.close()

            async def feed() -> None:
                while True:
                    await destination.send(bytes(1000))
                    await asyncio.sleep(0.01)

            with pytest.raises(ConnectionError):
                await feed()


@in_mux_modes
async def test_streams_of_one_session_end_independently(mode: str, certs: Certs) -> None:
    async with (
        listening() as there,
        tunnel(mode, there.port, certs) as port,
        asyncio.timeout(SOON),
        contextlib.AsyncExitStack() as stack,
    ):
        # The second when the first has its stream: of two that wait for a session any may win.
        one = await stack.enter_async_context(await connect(port))
        await one.send(b"one")
        first = await there.accept()
        assert await first.exactly(3) == b"one"
        two = await stack.enter_async_context(await connect(port))
        await two.send(b"two")
        second = await there.accept()
        assert await second.exactly(3) == b"two"
        await one.finish()
        assert await first.rest() == b""
        await second.send(b"still there")
        assert await two.exactly(11) == b"still there"
        await first.finish()
        assert await one.rest() == b""
        await two.finish()
        assert await second.rest() == b""
        await eventually(lambda: there.count == 2)
