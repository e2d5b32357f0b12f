"""Peers that misbehave: as clients of the program under test, and as its servers."""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
import time
from collections.abc import Callable

from mtt.wire import mux_cool, upgrade
from mtt.wire.smux import PSH, SYN, frame
from mtt.wire.upgrade import switching_protocols
from mtt.wire.websocket import BINARY, NO_MASK
from mtt.wire.websocket import frame as message
from soak.anytls_parsers import ANYTLS_FRAMES, DESTINATION, PREAMBLE, client_frames
from soak.mutation import mutated
from soak.parsers import COOL_STREAMS, FRAMES, STREAMS, UPGRADED
from soak.talk import LOOPBACK
from tests.support.certs import Certs
from tests.support.contexts import bare_context, trusting_context

# Strangers at a time for each port, and the seconds after which each closes its connection.
STRANGERS = 4
STAY = 0.5
# Seconds that they wait for an answer.
ANSWER = 0.05
# Seconds until they return after a failure.
REFUSED = 0.01

GREETING = b"an honest client says this"


def contexts(certs: Certs) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """For a client that trusts the server's certificate, and for a server that has it."""
    trusting = trusting_context(certs.ca)
    serving = bare_context(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(certs.cert, certs.key)
    return trusting, serving


class Strangers:
    """Send what `make` makes to a port, again and again, and look for answers.

    `source`: returns the address that the next one comes from.
    """

    def __init__(
        self,
        port: int,
        make: Callable[[], list[bytes]],
        tls: ssl.SSLContext | None = None,
        *,
        source: Callable[[], str] = lambda: LOOPBACK,
    ) -> None:
        self.count = 0
        self._port = port
        self._make = make
        self._tls = tls
        self._source = source

    async def come(self, until: float) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(STRANGERS):
                group.create_task(self._one_after_the_other(until))

    async def _one_after_the_other(self, until: float) -> None:
        while time.monotonic() < until:
            try:
                async with asyncio.timeout(STAY):
                    await self._visit()
            except TimeoutError:
                pass
            except OSError:
                await asyncio.sleep(REFUSED)  # forwarded ports are not always there
            self.count += 1

    async def _visit(self) -> None:
        name = "test.local" if self._tls else None
        reader, writer = await asyncio.open_connection(
            LOOPBACK, self._port, ssl=self._tls, server_hostname=name,
            local_addr=(self._source(), 0),
        )  # fmt: skip
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

    if mode == "anytls":
        return [spoilt(PREAMBLE), spoilt(client_frames(DESTINATION, GREETING))]
    if mode == "v2ray+mux":
        streams = mux_cool.new(1) + mux_cool.data_frames(1, GREETING)
    else:
        streams = frame(SYN, 3) + frame(PSH, 3, GREETING)
    if rng is not None:
        streams += frames_of(mode)
    data = spoilt(streams) if "mux" in mode else spoilt(GREETING)
    if has_websocket(mode):
        data = spoilt(message(BINARY, data, NO_MASK))
        if rng is not None:
            data += spoilt(FRAMES)
        return [spoilt(_request(mode)), data]
    return [data]


def has_websocket(mode: str) -> bool:
    return "wss" in mode or "v2ray" in mode


def frames_of(mode: str) -> bytes:
    """Frames of a mode with sessions, which go on with those of `tunnel`."""
    return COOL_STREAMS[len(mux_cool.new(1)) :] if mode == "v2ray+mux" else STREAMS


def _request(mode: str) -> bytes:
    if mode in ("wss", "wss+mux"):
        protocols: tuple[str, ...] = ("smux_on",) if "mux" in mode else ("smux_off",)
    else:
        protocols = ()
    key = upgrade.own_key(bytes(12), mux_cool=mode == "v2ray+mux")
    return upgrade.request("/", "server.example", key, protocols)


def client_hello() -> bytes:
    """What a TLS client says first."""
    out = ssl.MemoryBIO()
    context = trusting_context()
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
                if has_websocket(self._mode):
                    head = self._upgraded(asked)
                    writer.write(head if rng.random() < 0.8 else mutated(rng, UPGRADED))
                if self._mode == "anytls":
                    streams = mutated(rng, ANYTLS_FRAMES)
                else:
                    frames = frames_of(self._mode)
                    streams = mutated(rng, frames) if "mux" in self._mode else rng.randbytes(300)
                if has_websocket(self._mode):
                    streams = mutated(rng, message(BINARY, streams)) + mutated(rng, FRAMES)
                writer.write(streams)
                await writer.drain()
                await reader.read(65536)
        writer.transport.abort()

    def _upgraded(self, asked: bytes) -> bytes:
        _, _, rest = asked.partition(b"Sec-WebSocket-Key: ")
        key = rest.partition(b"\r\n")[0].decode("latin-1")
        protocol = "smux_on" if "mux" in self._mode else "smux_off"
        return switching_protocols(key, None if "v2ray" in self._mode else protocol)


async def use(port: int, make: Callable[[], bytes], until: float) -> None:
    """Be one application after the other of a client whose server talks nonsense."""
    while time.monotonic() < until:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(STAY * 2):
                reader, writer = await asyncio.open_connection(LOOPBACK, port)
                try:
                    writer.write(make())
                    while await reader.read(65536):
                        pass
                finally:
                    writer.transport.abort()
        await asyncio.sleep(0.01)
