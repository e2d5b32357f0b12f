"""Random and mutated input, for every parser and for every port that listens or answers.

Nothing raises what it should not, no process ends or logs a traceback, and honest clients are
served all the time. What goes to the ports is what the protocols look like, spoilt: recorded
openings, and whole tunnels in clear on servers with -disable-tls, where it gets past TLS. A client
meets a server that has the right certificate and then talks nonsense.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Iterator, Sequence

from mtt.log import logger
from soak import fuzz_proxy
from soak.mutation import mutated
from soak.parsers import PARSERS
from soak.programs import Pair, Program, Programs
from soak.report import Broken, Progress, say
from soak.strangers import (
    GREETING,
    STRANGERS,
    Echo,
    Rogue,
    Strangers,
    client_hello,
    contexts,
    tunnel,
    use,
)
from soak.talk import LOOPBACK, Destination, Talk, apply
from soak.usage import Gauge

# Parsers are fed for so long at a time; then the event loop has its turn.
SLICE = 0.02
# A parser that needs longer for some hundred bytes can be made to block everything.
SLOW = 1.0
# How often an honest client comes by, and how long it may take.
HONEST_INTERVAL = 1.0
HONEST_TIME = 10.0
# The modes in which a server can go without TLS.
IN_CLEAR = ("tls", "wss", "mux", "wss+mux", "v2ray", "v2ray+mux")


async def fuzz_parsers(seconds: float, seed: int) -> str:
    """Feed all parsers in turn; how much that was, in words. Raises Broken."""
    rng = random.Random(seed)
    until = time.monotonic() + seconds
    fed = 0
    progress = Progress("fuzz, parsers", int(seconds))
    while time.monotonic() < until:
        pause = time.monotonic() + SLICE
        while time.monotonic() < pause:
            name = rng.choice(list(PARSERS))
            parser = PARSERS[name]
            data = mutated(rng, rng.choice(parser.samples))
            start = time.monotonic()
            try:
                with _no_warnings():
                    parser.feed(data)
            except parser.errors:
                pass
            except Exception as error:
                raise Broken(
                    f"the parser of {name} raised {type(error).__name__}: {error} on {data!r}"
                ) from error
            if time.monotonic() - start > SLOW:
                raise Broken(f"the parser of {name} needed more than {SLOW:g} s for {data!r}")
            fed += 1
        progress.at(int(seconds - (until - time.monotonic())), f" s, {fed} inputs")
        await asyncio.sleep(SLICE)
    return f"{fed} inputs for {len(PARSERS)} parsers"


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    """Parsers of options and files have a word for everything that they do not use."""
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = False


async def _honest(port: int, mode: str, until: float) -> None:
    """Speak `mode` in clear to a server with an echo behind it, again and again. Raises Broken."""
    while time.monotonic() < until:
        heard = b""
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
            async with asyncio.timeout(HONEST_TIME):
                reader, writer = await asyncio.open_connection(LOOPBACK, port)
                *first, last = tunnel(mode)
                for piece in first:
                    writer.write(piece)
                    await reader.readuntil(b"\r\n\r\n")
                writer.write(last)
                while GREETING not in heard and (data := await reader.read(65536)):
                    heard += data
                writer.transport.abort()
        if GREETING not in heard:
            raise Broken(f"fuzz, {mode} in clear: an honest client got no answer, only {heard!r}")
        await asyncio.sleep(HONEST_INTERVAL)


async def _honest_pair(pair: Pair, until: float) -> None:
    """Talk through both of our ends, again and again. Raises Broken."""
    while time.monotonic() < until:
        try:
            async with asyncio.timeout(HONEST_TIME):
                done = await apply(pair.client.port, Talk(1, 20_000, 20_000))
        except TimeoutError:
            done = None
        if done is None:
            raise Broken(f"fuzz, {pair.mode}: an honest application was not served")
        pair.check()
        await asyncio.sleep(HONEST_INTERVAL)


async def fuzz_mode(programs: Programs, mode: str, seconds: float, seed: int) -> None:
    """All ports that there are in one mode."""
    rng = random.Random(f"{seed} {mode}")
    hello = client_hello()
    trusting, serving = contexts(programs.certs)
    async with Destination() as there, Echo() as echo, Rogue(serving, mode, seed) as rogue_port:
        server = await programs.server(mode, there.port)
        pair = Pair(mode, await programs.client(mode, server.port), server)
        behind_tls = await programs.server(mode, echo)
        misled = await programs.client(mode, rogue_port)
        gauge = Gauge(pair)
        await apply(pair.client.port, Talk(1, 1000, 1000))
        await gauge.begin()
        until = time.monotonic() + seconds
        strangers = {
            "spoilt TLS openings": Strangers(server.port, lambda: [mutated(rng, hello)]),
            "tunnels inside TLS": Strangers(behind_tls.port, lambda: tunnel(mode, rng), trusting),
        }
        others = [behind_tls, misled]
        async with asyncio.TaskGroup() as group:
            if mode in IN_CLEAR:
                # In TLS mode there is nothing to speak in clear, only bytes for the destination.
                clear = await programs.server(mode, echo, "-disable-tls")
                others.append(clear)
                strangers["in clear"] = Strangers(clear.port, lambda: tunnel(mode, rng))
                group.create_task(_honest(clear.port, mode, until))
            for each in strangers.values():
                group.create_task(each.come(until))
            group.create_task(_honest_pair(pair, until))
            for _ in range(STRANGERS):
                group.create_task(use(misled.port, lambda: GREETING, until))
        for program in others:
            program.check()
        figures = await gauge.compare()
        await _rests(*others)
        counts = ", ".join(f"{each.count} {name}" for name, each in strangers.items())
        say(f"fuzz, {mode}: {counts}; {figures}")


async def _rests(*programs: Program) -> None:
    """No process may be busy with itself: each answers a signal."""
    for program in programs:
        await program.usage()


async def soak(programs: Programs, modes: Sequence[str], seconds: float, seed: int) -> None:
    """All parsers, and all ports, at the same time. Raises Broken."""
    async with asyncio.TaskGroup() as group:
        parsing = group.create_task(fuzz_parsers(seconds, seed))
        for mode in modes:
            group.create_task(fuzz_mode(programs, mode, seconds, seed))
        if "anytls" in modes:
            group.create_task(fuzz_proxy.soak(programs, seconds, seed))
    say(f"fuzz: {parsing.result()}")
