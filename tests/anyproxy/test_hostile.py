"""Hostile agents, gateways and users: others are served, and nothing is left of them."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import ssl

import pytest

from anyproxy.agent import Agent
from mtt.outbound import agent as outbound_agent
from mtt.proxy.host_rules import HostRules, parse_patterns
from mtt.wire.agent import SUBPROTOCOL
from mtt.wire.http1 import MAX_HEAD
from tests.anyproxy import hostile
from tests.anyproxy.hostile import CONTROL, hostile_agent, misbehave
from tests.anyproxy.serving import (
    agent_for,
    agent_options,
    both,
    gateway_for,
    http_port,
    known,
)
from tests.anyproxy.test_gateway import basic
from tests.anyproxy.users import status, tunnel_request, user_of
from tests.support.certs import Certs
from tests.support.gopeer import (
    FIN,
    PSH,
    SYN,
    Tls,
    WebSocket,
    accept_for,
    smux_frame,
    smux_read,
)
from tests.support.tunnels import Tcp, connect, echo, eventually, port_of, serving

ROUNDS = 25

# Agents.


@pytest.mark.parametrize("seed", range(4))
async def test_random_agents_harm_no_others(
    certs: Certs, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    rng = random.Random(seed)
    async with (
        serving(echo) as target,
        gateway_for(certs) as gateway,
        agent_for(certs, gateway) as honest,
    ):
        for _ in range(ROUNDS):
            agent = await hostile_agent(port_of(gateway), certs)
            asking = [
                asyncio.create_task(status(http_port(gateway), tunnel_request(target.port)))
                for _ in range(rng.randrange(4))
            ]
            await asyncio.sleep(0)
            with contextlib.suppress(OSError, ssl.SSLError):
                for _ in range(rng.randrange(1, 5)):
                    said = rng.choice((hostile.frames, hostile.answers, hostile.messages))(rng)
                    await misbehave(agent, rng, smux_frame(SYN, CONTROL) + said)
                    await asyncio.sleep(0.001)
            agent.close()
            # The hostile agent may have said all of these.
            assert {await each for each in asking} <= {200, 403, 502, 503, 504}
            async with user_of(gateway, target.port):
                pass
        await eventually(lambda: len(gateway._frontend.sessions) == 1)
        await eventually(lambda: not gateway.tunnels)
        assert known(gateway, honest)
    assert not [line for line in caplog.text.splitlines() if "internal error" in line]


@pytest.mark.parametrize(
    "said",
    [
        b"\4\1" + bytes(1025),
        b"\0\0",
        b"\0\5\0\1\x7f\0\0",
        b"\0\4\0\3\x09lo",
        b"HTTP/1.1 200 OK\r\n",
    ],
)
async def test_malformed_answer_passes_the_user_on(certs: Certs, said: bytes) -> None:
    async with serving(echo) as target, gateway_for(certs) as gateway:
        agent = await hostile_agent(port_of(gateway), certs)
        asking = asyncio.create_task(status(http_port(gateway), tunnel_request(target.port)))
        frame = await smux_read(agent)
        assert frame is not None
        async with agent_for(certs, gateway):
            await agent.send(smux_frame(PSH, frame[1], said) + smux_frame(FIN, frame[1]))
            # The agents are those of the moment of the request.
            assert await asking == 503
            for _ in range(2):
                assert await status(http_port(gateway), tunnel_request(target.port)) == 200
        agent.close()


async def test_agent_that_never_answers_costs_its_users_only_time(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbound_agent, "ANSWER_TIME", 0.3)
    async with serving(echo) as target, gateway_for(certs) as gateway:
        agent = await hostile_agent(port_of(gateway), certs)
        asking = [status(http_port(gateway), tunnel_request(target.port)) for _ in range(3)]
        assert await asyncio.gather(*asking) == [504] * 3
        assert len(gateway._frontend.sessions) == 1
        agent.close()


# Gateways.


@pytest.mark.parametrize("seed", range(4))
async def test_random_gateways_harm_no_others(
    certs: Certs, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    rng = random.Random(seed)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certs.cert, certs.key)
    visits = 0

    async with serving(echo) as target:

        async def gateway(connection: Tcp) -> None:
            nonlocal visits
            visits += 1
            tls = Tls(connection, context, server_side=True)
            with contextlib.suppress(OSError, ssl.SSLError):
                await tls.handshake()
                asked = (await tls.until(b"\r\n\r\n")).decode()
                await tls.send(greeting(rng, asked))
                peer = WebSocket(tls, client=False)
                for _ in range(rng.randrange(1, 6)):
                    said = rng.choice(
                        (
                            hostile.heads(rng, target.port),
                            hostile.frames(rng),
                            hostile.messages(rng),
                        )
                    )
                    await misbehave(peer, rng, said)
                    await asyncio.sleep(0.001)
            tls.close()

        rules = HostRules(forbidden=parse_patterns("forbidden_hosts", ["10.0.0.0/8"], allow=False))
        async with serving(gateway) as bad, gateway_for(certs) as good:
            options = agent_options(certs, bad.port, port_of(good), rules=rules)
            agent = Agent(options)
            for link in agent.links:
                link.wait_times = 0.001, 0.002
            await agent.start()
            await eventually(lambda: known(good, agent))
            for _ in range(ROUNDS):
                before = visits
                await eventually(lambda: visits > before)  # noqa: B023
                async with user_of(good, target.port):
                    pass
            await agent.close()
            await eventually(lambda: not (agent.tunnels or agent.open_sessions))
    assert not [line for line in caplog.text.splitlines() if "internal error" in line]


def greeting(rng: random.Random, asked: str) -> bytes:
    """The answer of a hostile gateway to the agent's request, mostly a good one."""
    bad = (
        b"HTTP/1.1 403 Forbidden\r\nContent-Length: 3\r\n\r\nno\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 20,
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10_000,
        rng.randbytes(300),
    )
    if rng.random() < 0.2:
        return rng.choice(bad)
    key = re.search(r"(?i)sec-websocket-key: (\S+)", asked)
    assert key is not None
    protocol = SUBPROTOCOL if rng.random() < 0.9 else "another"
    return (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accept_for(key[1])}\r\n"
        f"Sec-WebSocket-Protocol: {protocol}\r\n\r\n"
    ).encode()


# Users.


class Recorder:
    """A web server that keeps what it gets, and answers each head."""

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.got = b""

    async def __call__(self, connection: Tcp) -> None:
        while data := await connection.read():
            self.got += data
            head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(self.name)
            await connection.send((head + self.name) * data.count(b"\r\n\r\n"))


def leads_to(agent: Agent, port: int) -> None:
    """Let every target of an agent be a port of this machine."""
    connect_to = agent.targets._dialer.connect
    agent.targets._dialer.connect = (  # type: ignore[method-assign]
        lambda _host, _port: connect_to("127.0.0.1", port)
    )


async def test_pipelined_requests_go_where_their_logins_lead(certs: Certs) -> None:
    home, office = Recorder(b"home"), Recorder(b"office")
    async with (
        serving(home) as first,
        serving(office) as second,
        gateway_for(certs) as gateway,
        agent_for(certs, gateway) as one,
        agent_for(certs, gateway, group="office", password="pw") as two,
    ):
        leads_to(one, first.port)  # the same name in two networks
        leads_to(two, second.port)
        logins = basic(), basic("office", "pw"), basic(), basic("office", "wrong"), basic()
        said = "".join(
            f"GET http://nas/{number} HTTP/1.1\r\nHost: nas\r\n{login}\r\n\r\n"
            for number, login in enumerate(logins)
        )
        async with await connect(http_port(gateway)) as user:
            await user.send(said.encode())
            answers = await user.rest()
        bodies = re.findall(rb"\r\n\r\n(home|office|this proxy)", answers)
        assert bodies == [b"home", b"office", b"home", b"this proxy"]
        assert re.findall(rb"GET /(\d)", home.got) == [b"0", b"2"]
        assert re.findall(rb"GET /(\d)", office.got) == [b"1"]
        assert b"proxy-authorization" not in (home.got + office.got).lower()


SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"


@pytest.mark.parametrize(
    "lines, body, expected",
    [
        (b"Content-Length: 4\r\n" + CHUNKED, b"0\r\n\r\n" + SMUGGLED, 400),
        (CHUNKED + b"Content-Length: 4\r\n", b"0\r\n\r\n" + SMUGGLED, 400),
        (b"Content-Length: 4\r\nContent-Length: 9\r\n", SMUGGLED, 400),
        (b"Content-Length: +4\r\n", SMUGGLED, 400),
        (b"Content-Length : 4\r\n", SMUGGLED, 400),
        (b"Content-Length: 4\n Content-Length: 9\r\n", SMUGGLED, 400),
        (b"X: y\rContent-Length: 4\r\n", SMUGGLED, 400),
        (b"Transfer-Encoding: identity, chunked\r\n", b"0\r\n\r\n" + SMUGGLED, 501),
        (b"Transfer-Encoding: \x0bchunked\r\n", b"0\r\n\r\n" + SMUGGLED, 400),
        (CHUNKED, b"0x0\r\n\r\n" + SMUGGLED, 400),
        (CHUNKED, b"1\nx\n0\n\n" + SMUGGLED, 400),
        (CHUNKED, b"0\r\nContent-Length: 9\r\n\r\n" + SMUGGLED, 400),
        (b"Host: other\r\n", SMUGGLED, 400),
        (b"X: " + b"y" * MAX_HEAD + b"\r\n", SMUGGLED, 431),
    ],
)
async def test_ambiguous_requests_reach_no_target(
    certs: Certs, lines: bytes, body: bytes, expected: int
) -> None:
    target = Recorder(b"page")
    async with serving(target) as there, both(certs) as (gateway, _):
        start = f"POST http://127.0.0.1:{there.port}/ HTTP/1.1\r\nHost: x\r\n{basic()}\r\n"
        async with await connect(http_port(gateway)) as user:
            await user.send(start.encode() + lines + b"\r\n" + body)
            answers = await user.rest()
        assert answers.startswith(b"HTTP/1.1 %d " % expected)
        assert answers.count(b"HTTP/1.1 ") == 1
        assert b"smuggled" not in target.got


async def test_body_that_looks_like_a_request_is_a_body(certs: Certs) -> None:
    target = Recorder(b"page")
    async with serving(target) as there, both(certs) as (gateway, _):
        head = f"POST http://127.0.0.1:{there.port}/ HTTP/1.1\r\nHost: x\r\n{basic()}\r\n"
        head += f"Connection: content-length\r\nContent-Length: {len(SMUGGLED)}\r\n\r\n"
        async with await connect(http_port(gateway)) as user:
            await user.send(head.encode() + SMUGGLED)
            assert await user.until(b"page")
        assert f"Content-Length: {len(SMUGGLED)}\r\n".encode() in target.got
        assert target.got.endswith(SMUGGLED)
