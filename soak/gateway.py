"""A gateway and its agents behind a network that does everything wrong.

    users -> gateway <- faults <- agents -> destinations

Users come through CONNECT, SOCKS5, UDP associations and forwarded ports. Meanwhile agents end and
return, and configurations are reloaded. Before and after the faults every connection succeeds, also
while configurations are reloaded; afterwards nothing is left.
"""

from __future__ import annotations

import asyncio
import collections
import random
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial

from soak.agents import (
    Configuration,
    Gateway,
    Way,
    agent_configuration,
    forwarded,
    free_ports,
    gateway_configuration,
    start_agent,
    start_gateway,
)
from soak.datagrams import COUNT, UdpEcho, associate, exchange
from soak.faults import CONCURRENT, HANG_TIME, _words, talks
from soak.programs import Program, Programs
from soak.report import Broken, Progress, say
from soak.talk import Destination, Talk, apply
from soak.usage import Gauge
from tests.support.faults import Fault, FaultProxy, random_faults

# An agent that logs this has begun, and handles signals.
_RUNNING = re.compile(rb"agent visitor of group")
# Sessions of each agent. Each carries many users until a fault ends it.
REPLICAS = 4
# Of the sessions, this share ends by a fault, within so many bytes.
HARMFUL, REACH = 0.6, 1_500_000
# How long a user tries again until there is an agent that serves it. The longest wait of an agent
# is 30 s; a session that seems good but is dead is found within 12 s.
SERVED_TIME = 90.0
RETRY_INTERVAL = 0.2
# Seconds between two actions of the operator, and between two users of UDP.
OPERATOR_INTERVAL = 1.0
DATAGRAMS_INTERVAL = 0.1
# Shares of the connections before the faults, and after them.
CALM_BEFORE, CALM_AFTER = 0.3, 0.2
# Seconds without a datagram until a user of UDP is forgotten.
UDP_TIMEOUT = 5
# Datagrams of COUNT that must be answered if nothing is wrong; kernels drop some under load.
ENOUGH = COUNT // 2


def _configuration(programs: Programs, ports: list[int]) -> Configuration:
    configuration = gateway_configuration(programs, ports)
    configuration["gateway"]["udp_timeout"] = f"{UDP_TIMEOUT}s"
    return configuration


class Scene:
    """All programs of the scenario."""

    def __init__(
        self,
        programs: Programs,
        gateway: Gateway,
        proxy: FaultProxy,
        seed: int,
        ports: list[int],
        there: Destination,
        echo: int,
    ) -> None:
        self.rng = random.Random(f"{seed} gateway")
        self.gateway = gateway
        self.echo = echo
        self._there = there
        self.ports = ports
        self.port = ports[0]
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.actions: collections.Counter[str] = collections.Counter()
        self.visitor: Program | None = None  # the agent that comes and goes
        self._programs = programs
        self._proxy = proxy
        self._changes = 0
        self.ways = [
            *gateway.ways(there.port),
            Way("forwarded port", self.port),
        ]

    def agent(self, name: str, **more: object) -> Configuration:
        """The configuration of an agent; `more` changes it."""
        tcp, udp = self._there.port, self.echo
        options = {
            "replicas": REPLICAS,
            "udp_timeout": f"{UDP_TIMEOUT}s",
            "open_ports": [forwarded(self.port, "tcp", tcp), forwarded(self.port, "udp", udp)],
        }
        return agent_configuration(self._programs, name, self._proxy.port, **options | more)

    async def begin(self) -> None:
        """Start the agents. Raises Broken."""
        self.gateway.agents = (await start_agent(self._programs, self.agent("resident")),)
        self.visitor = await start_agent(self._programs, self.agent("visitor"))

    async def reload(self) -> None:
        """Change a configuration in one way or another. Raises Broken."""
        self._changes += 1
        if self.rng.random() < 0.4:
            self.actions["gateway reloaded"] += 1
            group = {
                "balance": self.rng.choice(("round_robin", "least_streams", "sticky")),
                "max_streams": 1000 + self._changes,
                "rate": self.rng.choice(("50MB", "100MB")),
            }
            configuration = _configuration(self._programs, self.ports)
            configuration["gateway"]["groups"]["soak"] |= group
            proxy = configuration["gateway"]["proxy"]["http"]
            proxy |= {"auth_username": f"user{self._changes}", "auth_password": "p"}
            proxy |= {"group": "soak", "group_login": True}
            await self.gateway.gateway.reload(configuration)
            return
        self.actions["agent reloaded"] += 1
        more = self.agent("resident")["client"]["open_ports"]
        changes: list[dict[str, object]] = [
            {"replicas": REPLICAS - 1},
            {"replicas": REPLICAS + 2},
            {"udp_timeout": f"{UDP_TIMEOUT + 1}s"},
            {"allowed_hosts": ["127.0.0.0/8"]},
            {"id": f"resident{self._changes}"},
            {"open_ports": [*more, forwarded(0, "tcp", self._there.port)]},
        ]
        change = dict(self.rng.choice(changes))
        name = str(change.pop("id", "resident"))
        await self.gateway.agents[0].reload(self.agent(name, **change))

    async def replace_visitor(self) -> None:
        """End the second agent, and start it again. Raises Broken."""
        assert self.visitor is not None
        await self.visitor.logged(_RUNNING)
        kill = self.rng.random() < 0.5
        self.actions["agent killed" if kill else "agent stopped"] += 1
        if kill:
            self._there.killed |= self.visitor.freeze()
        await self._programs.end(self.visitor, kill=kill)
        self.visitor = self._programs.configured("anyproxy-client", self.agent("visitor"))

    async def disturb(self) -> None:
        """Do one thing that an operator, or the network, does. Raises Broken."""
        action = self.rng.random()
        if action < 0.5:
            await self.reload()
        elif action < 0.8:
            await self.replace_visitor()
        else:
            self.actions["all sessions reset"] += 1
            self._proxy.reset_all()

    async def settle(self) -> None:
        """Have the first configurations again. Raises Broken."""
        await self.gateway.gateway.reload(_configuration(self._programs, self.ports))
        await self.gateway.agents[0].reload(self.agent("resident"))

    async def send_datagrams(self, *, calm: bool) -> None:
        """Be one user of UDP. Raises Broken."""
        if self.rng.random() < 0.5:
            name, found = "association", await associate(self.gateway.socks5, self.echo, self.rng)
        else:
            name, found = "UDP port", await exchange(self.port, b"", self.rng)
        if calm and (found is None or found < ENOUGH):
            raise Broken(f"gateway: {name}: {found} of {COUNT} datagrams were answered")
        self.outcomes[f"datagrams by {name}"] += found or 0

    async def run(self, todo: Sequence[Talk], name: str, *, calm: bool) -> None:
        """Have all talks, CONCURRENT at a time, and datagrams, and an operator. Raises Broken."""
        progress = Progress(f"gateway, {name}", len(todo))
        waiting = enumerate(todo)

        async def work() -> None:
            for number, talk in waiting:
                await self._talk(self.ways[number % len(self.ways)], talk, calm=calm)
                progress.at(number)

        async def work_all() -> None:
            async with asyncio.TaskGroup() as group:
                for _ in range(CONCURRENT):
                    group.create_task(work())

        async with asyncio.TaskGroup() as group:
            working = group.create_task(work_all())
            disturb = self.reload if calm else self.disturb
            group.create_task(_repeat(disturb, OPERATOR_INTERVAL, working))
            group.create_task(
                _repeat(partial(self.send_datagrams, calm=calm), DATAGRAMS_INTERVAL, working)
            )

    async def _talk(self, way: Way, talk: Talk, *, calm: bool) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + SERVED_TIME
        while True:
            try:
                async with asyncio.timeout(HANG_TIME):
                    done = await apply(way.port, talk, way.opening)
            except TimeoutError:
                raise Broken(
                    f"gateway: a user of {way.name} heard nothing for {HANG_TIME:g} s: {talk}"
                ) from None
            if done or talk.ends_early:
                self.outcomes["complete" if done else "ended early"] += 1
                return
            self.outcomes["failed"] += 1
            if calm:
                raise Broken(f"gateway: a user of {way.name} failed without a fault: {talk}")
            if loop.time() > until:
                raise Broken(
                    f"gateway: a user of {way.name} was not served for {SERVED_TIME:g} s"
                )
            await asyncio.sleep(RETRY_INTERVAL)


def _parts(todo: Sequence[Talk]) -> Iterator[Sequence[Talk]]:
    """Those before the faults, under them, and after them."""
    first, last = int(len(todo) * CALM_BEFORE), int(len(todo) * (1 - CALM_AFTER))
    yield todo[:first]
    yield todo[first:last]
    yield todo[last:]


async def soak(programs: Programs, connections: int, seed: int) -> None:
    """Raises Broken."""
    plan = random_faults(seed, harmful=HARMFUL, reach=REACH)
    is_calm = True
    async with Destination() as there, UdpEcho() as echo:
        ports = free_ports(2)  # one is for those that the gateway chooses
        gateway = await start_gateway(programs, _configuration(programs, ports))
        async with FaultProxy(
            gateway.gateway.port, lambda number: Fault() if is_calm else plan(number), seed=seed
        ) as proxy:
            scene = Scene(programs, gateway, proxy, seed, ports, there, echo)
            await scene.begin()
            await _until_served(scene)
            gauge = Gauge(gateway)
            before, under, after = _parts(talks(seed, connections))
            await scene.run(before, "before faults", calm=True)
            await scene.settle()
            await gauge.begin()

            is_calm = False
            proxy.reset_all()
            await scene.run(under, "faults", calm=False)
            is_calm = True
            proxy.reset_all()
            await scene.settle()
            await _until_served(scene)

            await scene.run(after, "after faults", calm=True)
            await scene.settle()
            there.look()
            figures = await gauge.compare()
            if scene.visitor is not None:
                scene.visitor.check()
            say(f"gateway: {_words(scene.outcomes)}")
            say(f"gateway: {_words(scene.actions)}; faults: {_words(proxy.struck)}")
            say(f"gateway: {figures}")


async def _until_served(scene: Scene) -> None:
    """Wait until all sessions of all agents are there, and the ports are forwarded."""
    loop = asyncio.get_running_loop()
    until = loop.time() + SERVED_TIME
    for way in scene.ways:
        while await apply(way.port, Talk(1, 1000, 1000), way.opening) is None:
            scene.gateway.check()
            if loop.time() > until:
                raise Broken(f"gateway: no agent serves users of {way.name}")
            await asyncio.sleep(RETRY_INTERVAL)


async def _repeat(
    act: Callable[[], Awaitable[None]], interval: float, working: asyncio.Task[None]
) -> None:
    """Act again and again while others work; never interrupted."""
    while not working.done():
        await act()
        await asyncio.wait([working], timeout=interval)
