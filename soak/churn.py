"""An hour of opening and closing in minutes: short connections one after the other.

Memory after a warm-up is memory after the last one, within GROWTH.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from soak.agents import (
    FORWARDED,
    Way,
    agent_configuration,
    forwarded,
    free_ports,
    gateway_configuration,
    start_agent,
    start_gateway,
)
from soak.faults import run_talks
from soak.programs import MODES, Pair, Programs
from soak.report import Broken, Progress, say
from soak.talk import Destination, Talk
from soak.usage import Gauge

# Of the memory after the warm-up. A leak of one object per connection, 100 bytes say, is 5 MB.
GROWTH = 0.05
# Shares of all connections. Those without sessions cost a TLS handshake each, which is no better a
# test the ten-thousandth time.
SHARES = {
    "tls": 0.15, "wss": 0.1, "mux": 0.3, "wss+mux": 0.1, "v2ray": 0.05, "v2ray+mux": 0.1,
    "anytls": 0.2,
}  # fmt: skip
GATEWAY_SHARE = 0.1  # on top
WARM_UP = 0.2
# Bytes each way, at most.
SMALL = 2000


def _talks(count: int, seed: int) -> list[Talk]:
    rng = random.Random(seed)
    return [
        Talk(2 * number, rng.randrange(SMALL), rng.randrange(SMALL)) for number in range(count)
    ]


async def soak_mode(programs: Programs, mode: str, connections: int, seed: int) -> None:
    async with Destination() as there:
        server = await programs.server(mode, there.port)
        client = await programs.client(mode, server.port)
        pair = Pair(mode, client, server)
        gauge = Gauge(pair, more_memory=GROWTH)
        todo = _talks(connections, seed)
        first = int(connections * WARM_UP)
        outcomes = await run_talks(client.port, todo[:first])
        await gauge.begin()
        progress = Progress(f"churn, {mode}", connections - first)
        outcomes += await run_talks(client.port, todo[first:], progress)
        there.look()
        pair.check()
        if outcomes["complete"] != connections:
            raise Broken(f"churn, {mode}: of {connections} connections: {dict(outcomes)}")
        figures = await gauge.compare()
        say(f"churn, {mode}: {connections} connections; {figures}")


async def soak_gateway(programs: Programs, connections: int, seed: int) -> None:
    """The same through a gateway: by its proxies, and by a forwarded port."""
    ports = free_ports(1)
    async with Destination() as there:
        gateway = await start_gateway(programs, gateway_configuration(programs, ports))
        opened = [forwarded(ports[0], "tcp", there.port)]
        configuration = agent_configuration(
            programs, "agent", gateway.gateway.port, open_ports=opened
        )
        agent = await start_agent(programs, configuration)
        await agent.logged(FORWARDED)
        gateway.agents = (agent,)
        ways = [*gateway.ways(there.port), Way("forwarded port", ports[0])]
        gauge = Gauge(gateway, more_memory=GROWTH)
        todo = _talks(connections, seed)
        first = int(connections * WARM_UP)
        progress = Progress("churn, gateway", (connections - first) // len(ways))

        async def run(part: Sequence[Talk]) -> int:
            async with asyncio.TaskGroup() as group:
                runs = [
                    group.create_task(
                        run_talks(way.port, part[number :: len(ways)], progress, way.opening)
                    )
                    for number, way in enumerate(ways)
                ]
            return sum(each.result()["complete"] for each in runs)

        complete = await run(todo[:first])
        await gauge.begin()
        complete += await run(todo[first:])
        there.look()
        gateway.check()
        if complete != connections:
            raise Broken(f"churn, gateway: {complete} of {connections} connections were complete")
        say(f"churn, gateway: {connections} connections; {await gauge.compare()}")


async def soak(programs: Programs, modes: Sequence[str], connections: int, seed: int) -> None:
    """All modes and a gateway side by side. Raises Broken."""
    total = sum(SHARES[mode] for mode in modes)
    assert set(SHARES) == set(MODES)
    async with asyncio.TaskGroup() as group:
        for mode in modes:
            share = int(connections * SHARES[mode] / total)
            group.create_task(soak_mode(programs, mode, share, seed))
        group.create_task(soak_gateway(programs, int(connections * GATEWAY_SHARE), seed))
