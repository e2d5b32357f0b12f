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
import ssl
import time
from collections.abc import Callable, Sequence

from mtt.wire.smux import PSH, SYN, frame
from mtt.wire.upgrade import switching_protocols
from mtt.wire.websocket import BINARY, NO_MASK
from mtt.wire.websocket import frame as message
from soak.parsers import FRAMES, PARSERS, STREAMS, UPGRADE, UPGRADED, mutated
from soak.programs import Pair, Program, Programs
from soak.report import Broken, Progress, say
from soak.talk import LOOPBACK, Destination, Talk, apply
from soak.usage import Gauge

# Parsers are fed for so long at a time; then the event loop has its turn.
SLICE = 0.02
# A parser that needs longer for some hundred bytes can be made to block everything.
SLOW = 1.0
# Strangers at a time, for each port, and how long each stays if nobody closes the connection.
STRANGERS = 4
STAY = 0.5
# How long they wait for an answer before they go on.
ANSWER = 0.05
# How often an honest client comes by, and how long it may take.
HONEST_INTERVAL = 1.0
HONEST_TIME = 10.0

GREETING = b"an honest client says this"


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


class Strangers:
    """Send what `make` makes to a port, again and again, and look for answers."""

    def __init__(
        self, port: int, make: Callable[[], list[bytes]], tls: ssl.SSLContext | None = None
    ) -> None:
        self.count = 0
        self._port = port
        self._make = make
        self._tls = tls

    async def come(self, until: float) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(STRANGERS):
                group.create_task(self._one_after_the_other(until))

    async def _one_after_the_other(self, until: float) -> None:
        while time.monotonic() < until:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(STAY):
                    await self._visit()
            self.count += 1

    async def _visit(self) -> None:
        name = "test.local" if self._tls else None
        reader, writer = await asyncio.open_connection(
            LOOPBACK, self._port, ssl=self._tls, server_hostname=name
        )
        try:
            for data in self._make():
                for at in range(0, len(data), 500):
                    writer.write(data[at : at + 500])
                    await writer.drain()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(ANSWER):
                        await reader.read(65536)
            if self._tls is None and self.count % 2:
                writer.write_eof()
            while await reader.read(65536):
                pass
        finally:
            writer.transport.abort()


def tunnel(mode: str, rng: random.Random | None = None) -> list[bytes]:
    """All that a client says in `mode`, inside TLS: GREETING and no end; spoilt by `rng`.

    Between the pieces it waits for an answer.
    """

    def spoilt(data: bytes) -> bytes:
        return mutated(rng, data) if rng is not None and rng.random() < 0.7 else data

    streams = frame(SYN, 3) + frame(PSH, 3, GREETING)
    if rng is not None:
        streams += STREAMS
    data = spoilt(streams) if "mux" in mode else spoilt(GREETING)
    if "wss" in mode:
        request = UPGRADE.replace(b"/tunnel", b"/")
        if mode == "wss":
            request = request.replace(b"smux_on, ", b"")
        else:
            request = request.replace(b", smux_off", b"")
        data = spoilt(message(BINARY, data, NO_MASK))
        if rng is not None:
            data += spoilt(FRAMES)
        return [spoilt(request), data]
    return [data]


def client_hello() -> bytes:
    """What a TLS client says first."""
    out = ssl.MemoryBIO()
    context = ssl.create_default_context()
    client = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname="test.local")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return out.read()


class Echo:
    """A destination that answers with what it gets."""

    async def __aenter__(self) -> int:
        self._server = await asyncio.start_server(self._serve, LOOPBACK, 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError), contextlib.closing(writer):
            while data := await reader.read(65536):
                writer.write(data)


class Rogue:
    """A server with the right certificate that talks nonsense."""

    def __init__(self, context: ssl.SSLContext, mode: str, seed: int) -> None:
        self._context = context
        self._mode = mode
        self._rng = random.Random(seed)
        self.count = 0

    async def __aenter__(self) -> int:
        self._server = await asyncio.start_server(self._serve, LOOPBACK, 0, ssl=self._context)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.count += 1
        rng = self._rng
        # Cancelled when the server closes; asyncio's streams would complain about that.
        with contextlib.suppress(OSError, TimeoutError, asyncio.CancelledError):
            async with asyncio.timeout(STAY):
                asked = await reader.read(65536)
                if "wss" in self._mode:
                    head = self._upgraded(asked)
                    writer.write(head if rng.random() < 0.8 else mutated(rng, UPGRADED))
                streams = mutated(rng, STREAMS) if "mux" in self._mode else rng.randbytes(300)
                if "wss" in self._mode:
                    streams = mutated(rng, message(BINARY, streams)) + mutated(rng, FRAMES)
                writer.write(streams)
                await writer.drain()
                await reader.read(65536)
        writer.transport.abort()

    def _upgraded(self, asked: bytes) -> bytes:
        _, _, rest = asked.partition(b"Sec-WebSocket-Key: ")
        key = rest.partition(b"\r\n")[0].decode("latin-1")
        return switching_protocols(key, "smux_on" if "mux" in self._mode else "smux_off")


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


async def _application(port: int, until: float) -> None:
    """Be one application after the other of a client whose server talks nonsense."""
    while time.monotonic() < until:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(STAY * 2):
                reader, writer = await asyncio.open_connection(LOOPBACK, port)
                try:
                    writer.write(GREETING)
                    while await reader.read(65536):
                        pass
                finally:
                    writer.transport.abort()
        await asyncio.sleep(0.01)


async def fuzz_mode(programs: Programs, mode: str, seconds: float, seed: int) -> None:
    """All ports that there are in one mode."""
    rng = random.Random(f"{seed} {mode}")
    hello = client_hello()
    trusting = ssl.create_default_context(cafile=programs.certs.ca)
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(programs.certs.cert, programs.certs.key)
    async with Destination() as there, Echo() as echo, Rogue(serving, mode, seed) as rogue_port:
        server = await programs.server(mode, there.port)
        pair = Pair(mode, await programs.client(mode, server.port), server)
        # In TLS mode there is nothing to speak in clear, only bytes for the destination.
        clear = await programs.server(mode, echo, "-disable-tls")
        behind_tls = await programs.server(mode, echo)
        misled = await programs.client(mode, rogue_port)
        gauge = Gauge(pair)
        await apply(pair.client.port, Talk(1, 1000, 1000))
        await gauge.begin()
        until = time.monotonic() + seconds
        strangers = [
            Strangers(server.port, lambda: [mutated(rng, hello)]),
            Strangers(clear.port, lambda: tunnel(mode, rng)),
            Strangers(behind_tls.port, lambda: tunnel(mode, rng), trusting),
        ]
        async with asyncio.TaskGroup() as group:
            for each in strangers:
                group.create_task(each.come(until))
            group.create_task(_honest(clear.port, mode, until))
            group.create_task(_honest_pair(pair, until))
            for _ in range(STRANGERS):
                group.create_task(_application(misled.port, until))
        for program in (clear, behind_tls, misled):
            program.check()
        counts = [each.count for each in strangers]
        figures = await gauge.compare()
        await _rests(clear, behind_tls, misled)
        say(
            f"fuzz, {mode}: {counts[0]} spoilt TLS openings, {counts[1]} tunnels in clear, "
            f"{counts[2]} inside TLS; {figures}"
        )


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
    say(f"fuzz: {parsing.result()}")
