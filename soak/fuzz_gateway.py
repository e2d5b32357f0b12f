"""The ports of a gateway, and an agent of a hostile gateway, among strangers, see `fuzz`.

Strangers come to the port for agents, with and without a valid login, as agents that then talk
nonsense, and to both proxies. Another agent connects to a gateway that talks nonsense. Agents reach
nothing but the destinations here. Sessions with Go programs are fuzzed in this process as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
import time
from functools import partial
from typing import Self

from mtt.outcome import Outcome
from mtt.wire import agent, smux, uot
from mtt.wire.upgrade import request, switching_protocols
from mtt.wire.websocket import BINARY, NO_MASK
from mtt.wire.websocket import frame as message
from soak import go_sessions
from soak.agents import (
    FORWARDED,
    GROUP,
    PASSWORD,
    Gateway,
    agent_configuration,
    associate,
    connect,
    forwarded,
    free_ports,
    gateway_configuration,
    random_loopback,
    socks5,
    start_agent,
    start_gateway,
)
from soak.anyproxy_parsers import GO_MESSAGES, MESSAGES
from soak.anytls_parsers import DATAGRAMS
from soak.mutation import mutated
from soak.parsers import FRAMES, KEY
from soak.programs import Program, Programs
from soak.report import Broken, say
from soak.strangers import GREETING, STAY, Echo, Strangers, contexts
from soak.talk import LOOPBACK, Destination, Talk, apply
from soak.usage import LOOK_INTERVAL, SETTLE_TIME, SPARE, Gauge

# How often an honest user comes by, and how long it may take.
HONEST_INTERVAL = 1.0
HONEST_TIME = 10.0
# The group of strangers with a valid login; its users are strangers, too.
HOSTILE = "hostile"
# Streams that a hostile gateway opens correctly, before anything that ends the session.
STREAMS = 40
# Sessions of the agent with the hostile gateway. Each waits for up to 30 s after a failure.
REPLICAS = 32


def upgrade(group: str, name: str, *, is_go: bool) -> bytes:
    """The request of an agent."""
    headers = {"X-Client-Id": name, "X-Group-Id": group, "X-Group-Password": PASSWORD}
    protocols = () if is_go else (agent.SUBPROTOCOL,)
    return request("/ws", "server.example", KEY, protocols, headers=headers)


def _stream(number: int, data: bytes) -> bytes:
    return smux.frame(smux.SYN, number) + smux.frame(smux.PSH, number, data)


def agent_says(rng: random.Random) -> bytes:
    """Its control stream, and answers to whatever streams the gateway opens."""
    answers = (
        agent.Answer(Outcome.SUCCEEDED, (LOOPBACK, 9)).encode() + GREETING,
        agent.Answer(Outcome.SUCCEEDED).encode() + DATAGRAMS,
        agent.Answer(Outcome.NO_AGENT).encode(),
    )
    parts = [_stream(3, _control(rng))]
    for number in range(2, 22, 2):
        parts.append(
            smux.frame(smux.PSH, number, _sometimes_mutated(rng, rng.choice(answers)))
        )
        if rng.random() < 0.3:
            parts.append(smux.frame(smux.FIN, number))
    return b"".join(parts)


def gateway_says(rng: random.Random, port: int) -> bytes:
    """Streams to `port` of this machine, for its agent."""
    heads = (
        agent.Head(agent.TCP, LOOPBACK, port, ("198.51.100.7", 4000)).encode() + GREETING,
        agent.Head(agent.UDP, "0.0.0.0", 0).encode() + DATAGRAMS,
        uot.encode_datagram(GREETING, LOOPBACK, port),
    )
    parts = [smux.frame(smux.PSH, 3, _control(rng))]
    for number in range(2, 2 * STREAMS, 2):
        parts.append(_stream(number, _sometimes_mutated(rng, rng.choice(heads))))
        if rng.random() < 0.3:
            parts.append(smux.frame(smux.FIN, number))
    return b"".join(parts)


def _control(rng: random.Random) -> bytes:
    """On the control stream; most mistakes there end the session."""
    said = rng.choice(MESSAGES)
    return mutated(rng, said) if rng.random() < 0.1 else said


def _sometimes_mutated(rng: random.Random, data: bytes) -> bytes:
    return mutated(rng, data) if rng.random() < 0.7 else data


def go_messages(rng: random.Random, mask: bytes | None) -> bytes:
    """What a Go program says, one way or the other."""
    return b"".join(
        message(BINARY, _sometimes_mutated(rng, rng.choice(GO_MESSAGES)), mask) for _ in range(20)
    )


class HostileGateway:
    """A gateway with the right certificate that talks nonsense."""

    def __init__(self, context: ssl.SSLContext, rng: random.Random, target: int) -> None:
        self.count = 0
        self._context = context
        self._rng = rng
        self._target = target

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, LOOPBACK, 0, ssl=self._context)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take no more agents. Sessions end soon."""
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.count += 1
        rng = self._rng
        # Cancelled when the server closes; asyncio's streams would complain about that.
        with contextlib.suppress(OSError, TimeoutError, asyncio.CancelledError):
            async with asyncio.timeout(2 * STAY):
                asked = (await reader.read(65536)).decode("latin-1")
                key = asked.partition("Sec-WebSocket-Key: ")[2].partition("\r\n")[0]
                is_go = rng.random() < 0.3
                head = switching_protocols(key, "" if is_go else agent.SUBPROTOCOL)
                writer.write(head if rng.random() < 0.9 else mutated(rng, head))
                if is_go:
                    writer.write(go_messages(rng, None))
                for _ in range(3):
                    writer.write(message(BINARY, gateway_says(rng, self._target)))
                    await writer.drain()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(STAY / 4):
                            await reader.read(65536)
                writer.write(mutated(rng, message(BINARY, gateway_says(rng, self._target))))
                writer.write(mutated(rng, FRAMES))
                await writer.drain()
                await reader.read(65536)
        writer.transport.abort()


async def _honest(gateway: Gateway, forwarded_port: int, target: int, until: float) -> None:
    """Be one honest user after the other. Raises Broken."""
    ways = [(way.name, way.port, way.opening) for way in gateway.ways(target)]
    ways.append(("a forwarded port", forwarded_port, (b"", b"")))
    while time.monotonic() < until:
        for name, port, opening in ways:
            try:
                async with asyncio.timeout(HONEST_TIME):
                    done = await apply(port, Talk(1, 20_000, 20_000), opening)
            except TimeoutError:
                done = None
            if done is None:
                raise Broken(f"fuzz, gateway: an honest user of {name} was not served")
        gateway.check()
        await asyncio.sleep(HONEST_INTERVAL)


async def _has_recovered(misled: Program, descriptors: int) -> None:
    """Wait until an agent without a gateway has no more descriptors than another one has.

    Raises Broken.
    """
    until = time.monotonic() + SETTLE_TIME
    while (count := misled.descriptors) > descriptors + SPARE:
        misled.check()
        if time.monotonic() > until:
            raise Broken(f"fuzz, gateway: the misled agent still has {count} descriptors")
        await asyncio.sleep(LOOK_INTERVAL)
    await misled.usage()  # it is not busy with itself


async def soak(programs: Programs, seconds: float, seed: int) -> None:
    """Raises Broken."""
    rng = random.Random(f"{seed} gateway")
    trusting, serving = contexts(programs.certs)
    ports = free_ports(4)
    hostile_group = {"password": PASSWORD, "ports": ports[1:]}
    async with (
        Destination() as there,
        Echo() as echo,
        HostileGateway(serving, rng, echo) as hostile,
    ):
        configuration = gateway_configuration(programs, ports[:1], **{HOSTILE: hostile_group})
        gateway = await start_gateway(programs, configuration)
        own = gateway.gateway
        allowed = {"allowed_hosts": [f"{LOOPBACK}/32:{port}" for port in (there.port, echo)]}
        opened = [forwarded(ports[0], "tcp", there.port)]
        gateway.agents = (
            await start_agent(
                programs,
                agent_configuration(programs, "honest", own.port, open_ports=opened, **allowed),
            ),
        )
        misled = await start_agent(
            programs,
            agent_configuration(programs, "misled", hostile.port, replicas=REPLICAS, **allowed),
        )
        await gateway.agents[0].logged(FORWARDED)
        gauge = Gauge(gateway)
        await gauge.begin()

        def stranger_agent() -> list[bytes]:
            group = HOSTILE if rng.random() < 0.8 else GROUP if rng.random() < 0.5 else "new"
            is_go = rng.random() < 0.3
            head = upgrade(group, f"agent{rng.randrange(5)}", is_go=is_go)
            if group == GROUP:  # its users must not meet a stranger
                head = head.replace(PASSWORD.encode(), b"wrong")
            elif rng.random() < 0.3:
                head = mutated(rng, head)
            if is_go:
                return [head, go_messages(rng, NO_MASK), mutated(rng, FRAMES)]
            said = [message(BINARY, agent_says(rng), NO_MASK) for _ in range(3)]
            return [head, *said, mutated(rng, said[0]) + mutated(rng, FRAMES)]

        asked = [
            said
            for name in (GROUP, HOSTILE)
            for said in (connect(echo, name)[0], socks5(echo, name)[0], associate(name))
        ]

        def user() -> list[bytes]:
            said = rng.choice(asked)
            return [said if rng.random() < 0.3 else mutated(rng, said), mutated(rng, GREETING)]

        until = time.monotonic() + seconds
        source = partial(random_loopback, rng)
        strangers = {
            "agents": Strangers(own.port, stranger_agent, trusting, source=source),
            "users of HTTP": Strangers(gateway.http, user, source=source),
            "users of SOCKS5": Strangers(gateway.socks5, user, source=source),
            "users of ports": Strangers(ports[1], lambda: [GREETING], source=source),
        }
        async with asyncio.TaskGroup() as group:
            for each in strangers.values():
                group.create_task(each.come(until))
            group.create_task(_honest(gateway, ports[0], there.port, until))
            sessions = group.create_task(go_sessions.soak(seconds, seed))
        hostile.close()
        there.look()
        figures = await gauge.compare()
        await _has_recovered(misled, gateway.agents[0].descriptors)
        counts = ", ".join(f"{each.count} {name}" for name, each in strangers.items())
        counts += f", {hostile.count} sessions of the misled agent, {sessions.result()}"
        say(f"fuzz, gateway: {counts}; {figures}")
