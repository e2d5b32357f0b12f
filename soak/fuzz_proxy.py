"""Fuzzes the ports of anytls-client (SOCKS, HTTP, UDP) and anytls-server, see `fuzz`.

The server allows only the destinations here, so that no fuzzed address leads elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import time

from mtt.outcome import Outcome
from mtt.wire import addresses, socks, uot
from soak.anytls_parsers import ASSOCIATED, PREAMBLE, client_frames, proxy_openings
from soak.mutation import mutated
from soak.programs import Pair, Programs
from soak.report import Broken, say
from soak.strangers import GREETING, STAY, STRANGERS, Echo, Rogue, Strangers, contexts, use
from soak.talk import LOOPBACK, Destination, Talk, apply
from soak.usage import Gauge

# How often an honest application comes by, and how long it may take.
HONEST_INTERVAL = 1.0
HONEST_TIME = 10.0


def opening(port: int) -> tuple[bytes, bytes]:
    """What a SOCKS5 client says that wants to go to a port of this machine, and what it gets."""
    said = b"\5\1\0" + b"\5\1\0" + addresses.encode(LOOPBACK, port)
    return said, socks.method_reply(0) + socks.reply5(Outcome.SUCCEEDED)


async def _honest(pair: Pair, to: int, until: float) -> None:
    """Be one honest application after the other. Raises Broken."""
    while time.monotonic() < until:
        try:
            async with asyncio.timeout(HONEST_TIME):
                done = await apply(pair.client.port, Talk(1, 20_000, 20_000), opening(to))
        except TimeoutError:
            done = None
        if done is None:
            raise Broken("fuzz, proxy: an honest application was not served")
        pair.check()
        await asyncio.sleep(HONEST_INTERVAL)


async def _datagrams(port: int, rng: random.Random, until: float) -> int:
    """Spoilt datagrams through one association after the other; returns how many."""
    sample = socks.datagram_header(LOOPBACK, 9) + b"a datagram"
    ask = b"\5\1\0" + b"\5\3\0" + addresses.encode("0.0.0.0", 0)
    count = 0
    while time.monotonic() < until:
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
            async with asyncio.timeout(2 * STAY):
                reader, writer = await asyncio.open_connection(LOOPBACK, port)
                try:
                    writer.write(ask)
                    relay = int.from_bytes((await reader.readexactly(12))[-2:], "big")
                    with socket.socket(type=socket.SOCK_DGRAM) as sender:
                        for _ in range(50):
                            sender.sendto(mutated(rng, sample), (LOOPBACK, relay))
                            count += 1
                            await asyncio.sleep(0.005)
                finally:
                    writer.transport.abort()
    return count


async def soak(programs: Programs, seconds: float, seed: int) -> None:
    """Raises Broken."""
    rng = random.Random(f"{seed} proxy")
    trusting, serving = contexts(programs.certs)
    async with (
        Destination() as there,
        Echo() as echo,
        Rogue(serving, "anytls", seed) as rogue_port,
    ):
        server = await programs.anytls_server(there.port, echo)
        pair = Pair("proxy", await programs.anytls_client(server.port), server)
        misled = await programs.anytls_client(rogue_port)
        gauge = Gauge(pair)
        if await apply(pair.client.port, Talk(1, 1000, 1000), opening(there.port)) is None:
            raise Broken("fuzz, proxy: the first application was not served")
        await gauge.begin()
        asked = proxy_openings(echo)

        def application() -> list[bytes]:
            # Its end belongs to the opening more often than not: what follows has got through.
            return [mutated(rng, rng.choice(asked)), mutated(rng, GREETING)]

        def client() -> list[bytes]:
            destination = addresses.encode(LOOPBACK, echo)
            frames = client_frames(destination, GREETING)
            if rng.random() < 0.5:
                frames = client_frames(addresses.encode(uot.MAGIC, 0), ASSOCIATED)
            preamble = PREAMBLE if rng.random() < 0.7 else mutated(rng, PREAMBLE)
            return [preamble, mutated(rng, frames)]

        until = time.monotonic() + seconds
        strangers = {
            "applications": Strangers(pair.client.port, application),
            "clients": Strangers(server.port, client, trusting),
        }
        async with asyncio.TaskGroup() as group:
            for each in strangers.values():
                group.create_task(each.come(until))
            group.create_task(_honest(pair, there.port, until))
            datagrams = group.create_task(_datagrams(pair.client.port, rng, until))
            for _ in range(STRANGERS):
                group.create_task(use(misled.port, lambda: opening(echo)[0] + GREETING, until))
        misled.check()
        figures = await gauge.compare()
        await misled.usage()  # it is not busy with itself
        counts = ", ".join(f"{each.count} {name}" for name, each in strangers.items())
        say(f"fuzz, proxy: {counts}, {datagrams.result()} datagrams; {figures}")
