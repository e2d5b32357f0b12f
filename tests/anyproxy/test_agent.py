"""How an agent connects to gateways: what it sends, refusals, and ends in the middle."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

from anyproxy import asking
from anyproxy.agent import Agent
from anyproxy.link import LONGEST_WAIT
from mtt.users.user import User
from mtt.wire.http1 import parse_request
from tests.anyproxy.serving import agent_options, gateway_for
from tests.support.certs import Certs
from tests.support.tunnels import Listening, Tcp, eventually, logged, port_of, serving

NEVER = 1_000_000.0


@contextlib.asynccontextmanager
async def agent_of(certs: Certs, port: int, **changes: Any) -> AsyncIterator[Agent]:
    """An agent of a gateway without TLS that need not admit it, and that it calls once."""
    agent = Agent(agent_options(certs, port, tls=None, **changes))
    for link in agent.links:
        link.wait_times = NEVER, NEVER
    await agent.start()
    try:
        yield agent
    finally:
        await agent.close()


async def first_line(lines: list[str]) -> str:
    await eventually(lambda: lines)
    return lines[0]


@contextlib.asynccontextmanager
async def gateway_that_says(answer: bytes) -> AsyncIterator[Listening]:
    async def say(connection: Tcp) -> None:
        await connection.until(b"\r\n\r\n")
        await connection.send(answer)
        await connection.rest()

    async with serving(say) as gateway:
        yield gateway


async def test_names_and_passwords_are_sent_in_utf8(certs: Certs) -> None:
    heads: list[bytes] = []

    async def listen(connection: Tcp) -> None:
        heads.append(await connection.until(b"\r\n\r\n"))

    async with (
        serving(listen) as gateway,
        agent_of(
            certs, gateway.port, id="Büro", group="Gruppe Ä", password="pässword €",
            login=User("gäte", "kéy"),
        ),
    ):  # fmt: skip
        await eventually(lambda: heads)
    request = parse_request(heads[0])
    assert request.target == "/ws"
    sent = {name: value.encode("latin-1").decode() for name, value in request.headers}
    assert re.fullmatch("Büro-r0-[0-9a-v]{20}", sent["x-client-id"])
    assert sent["x-group-id"] == "Gruppe Ä"
    assert sent["x-group-password"] == "pässword €"
    assert sent["authorization"] == "Basic Z8OkdGU6a8OpeQ=="


@pytest.mark.parametrize(
    "changes, text",
    [
        ({}, "the gateway refuses this agent: 401, wrong login; check auth_username and "),
        (
            {"login": User("gate", "key"), "password": ""},
            "the gateway refuses this agent: 403, the group needs a password",
        ),
    ],
)
async def test_refusal_of_our_gateway_has_its_reason(
    certs: Certs, changes: dict[str, Any], text: str
) -> None:
    async with gateway_for(certs, tls=None, login=User("gate", "key")) as gateway:
        with logged() as lines:
            async with agent_of(certs, port_of(gateway), **changes) as agent:
                await eventually(lambda: len(lines) == 2)
                assert not agent.open_sessions
        (line,) = [line for line in lines if "no session" in line]
        assert f"trying again: 127.0.0.1:{port_of(gateway)}: {text}" in line
        assert sum(agent.counters.handshake_failures.values()) == 1


@pytest.mark.parametrize(
    "answer, text",
    [
        ("403 Forbidden\r\nContent-Length: 7\r\n\r\nbecause", "refuses this agent: 403, because"),
        ("403 Forbidden\r\nContent-Length: 9\r\n\r\n", "refuses this agent: 403, forbidden"),
        ("403 Forbidden\r\n\r\n<html>no</html>", "refuses this agent: 403, forbidden"),
        ("403 Forbidden\r\n\r\n" + "x" * 201, "refuses this agent: 403, forbidden"),
        ("403 Forbidden\r\n\r\n\x1b[2J", "refuses this agent: 403, forbidden"),
        ("401 Unauthorized\r\n\r\nnever", "refuses this agent: 401, wrong login; check"),
        ("404 Not Found\r\n\r\n", "the server answered the WebSocket request with 404 Not Found"),
        ("503 Busy\r\n\r\n", "the server answered the WebSocket request with 503 Busy"),
    ],
)
async def test_refusals_of_other_gateways(certs: Certs, answer: str, text: str) -> None:
    async with gateway_that_says(f"HTTP/1.1 {answer}".encode()) as gateway:
        with logged() as lines:
            async with agent_of(certs, gateway.port):
                line = await first_line(lines)
        assert text in line
        assert line.isprintable()
        assert len(line) < 300


async def test_silent_gateway_is_given_up(certs: Certs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "CONNECT_TIME", 0.1)
    async with gateway_that_says(b"") as gateway:
        with logged() as lines:
            async with agent_of(certs, gateway.port):
                assert (await first_line(lines)).endswith(": no answer within 0.1 s")


async def test_gateway_that_ends_instead_of_an_answer(certs: Certs) -> None:
    async def end(connection: Tcp) -> None:
        await connection.until(b"\r\n\r\n")

    async with serving(end) as gateway:
        with logged() as lines:
            async with agent_of(certs, gateway.port):
                line = await first_line(lines)
        assert line.endswith(" without an HTTP response; does it run in WebSocket mode?")


async def test_agent_that_closes_in_the_upgrade_leaves_nothing(certs: Certs) -> None:
    asked, ended = asyncio.Event(), asyncio.Event()

    async def listen(connection: Tcp) -> None:
        await connection.until(b"\r\n\r\n")
        asked.set()
        with contextlib.suppress(ConnectionResetError):
            assert await connection.rest() == b""
        ended.set()

    async with serving(listen) as gateway:
        async with agent_of(certs, gateway.port):
            await asked.wait()
        await ended.wait()


async def test_agent_that_closes_in_the_tls_handshake_leaves_nothing(certs: Certs) -> None:
    asked, ended = asyncio.Event(), asyncio.Event()

    async def listen(connection: Tcp) -> None:
        await connection.read()
        asked.set()
        with contextlib.suppress(ConnectionResetError):
            await connection.rest()
        ended.set()

    async with serving(listen) as gateway:
        agent = Agent(agent_options(certs, gateway.port))
        await agent.start()
        await asked.wait()
        await agent.close()
        await ended.wait()


async def test_refused_agent_waits_long(certs: Certs) -> None:
    async with gateway_for(certs, tls=None) as gateway:
        agent = Agent(agent_options(certs, port_of(gateway), tls=None, password=""))
        waits: list[float] = []

        async def wait(seconds: float) -> bool:
            waits.append(seconds)
            await asyncio.get_running_loop().create_future()
            return True

        (link,) = agent.links
        link._wait = wait  # type: ignore[method-assign]
        await agent.start()
        await eventually(lambda: waits)
        await agent.close()
        assert LONGEST_WAIT / 2 <= waits[0] <= LONGEST_WAIT
