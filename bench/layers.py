"""The pure layers, in this process: no sockets, no kernel, so a regression can be located.

Two stacks face each other across a pipe of memory. The CPU time of writing at the top of one and
of delivering to the bottom of the other is taken separately; the copy into the receive buffer,
which the kernel makes in real life, is part of the latter.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from bench.certs import SERVER_NAME, Certs
from mtt.layers.base import Data, StreamProtocol, StreamTransport
from mtt.layers.parked import Parked
from mtt.layers.reads import READ_SIZE
from mtt.layers.smux import SmuxSession
from mtt.layers.tls import TlsLayer
from mtt.layers.websocket import WebSocketLayer
from mtt.trust import certificates
from mtt.trust.tls_options import ClientTls, ServerTls
from mtt.wire import alpn

SMALL = 100  # bytes: a key stroke, a game's update, the head of a reply
_SETTLE_TURNS = 20  # of the event loop, until both ends of a stack are up


class Stack(NamedTuple):
    """Layers from the bottom up, of "tls", "websocket", "smux"; the sender, and its masking."""

    layers: tuple[str, ...]
    from_client: bool = True
    random_mask: bool = False


STACKS = {
    "tls": Stack(("tls",)),
    "websocket, zero key": Stack(("websocket",)),
    "websocket, random key": Stack(("websocket",), random_mask=True),
    "websocket, from the server": Stack(("websocket",), from_client=False),
    "smux": Stack(("smux",)),
    "tls + websocket": Stack(("tls", "websocket")),
    "tls + smux": Stack(("tls", "smux")),
    "tls + websocket + smux": Stack(("tls", "websocket", "smux")),
}


class Pipe(StreamTransport):
    """One end of a connection that is a list."""

    def __init__(self, protocol: Any) -> None:
        super().__init__()
        self.upper = protocol
        self.queue: list[bytes] = []

    def write(self, data: Any) -> None:
        self.queue.append(data)

    def unsent(self) -> int:
        return 0

    @property
    def socket_written(self) -> int:
        return 0

    def half_closes(self) -> bool | None:
        return False

    def deliver_to(self, far: Pipe) -> None:
        """Give `far` what was written here, as a socket would: one read after the other."""
        data = memoryview(b"".join(self.queue))
        self.queue.clear()
        for start in range(0, len(data), READ_SIZE):
            far.upper.data_received(data[start : start + READ_SIZE])

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return False

    def is_reading(self) -> bool:
        return True

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...
    def cut(self) -> None: ...


class Sink(StreamProtocol):
    """The top of a stack: counts."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.received = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: Data) -> None:
        self.received += len(data)

    def connection_lost(self, exc: Exception | None) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...


def measure_layers(stack: Stack, certs: Certs, seconds: float) -> dict[str, float]:
    """MB/s of CPU time for sending and for receiving, and us for one small message of both."""
    return asyncio.run(_measure(stack, certs, seconds))


async def _measure(stack: Stack, certs: Certs, seconds: float) -> dict[str, float]:
    sinks = (Sink(), Sink())
    client, server = (
        Pipe(_build(stack, certs, sink, client))
        for sink, client in zip(sinks, (True, False), strict=True)
    )
    for pipe in (client, server):
        pipe.upper.connection_made(pipe)
    for _ in range(_SETTLE_TURNS):
        client.deliver_to(server)
        server.deliver_to(client)
        await asyncio.sleep(0)
    near, far = (client, server) if stack.from_client else (server, client)
    sender, receiver = sinks if stack.from_client else sinks[::-1]

    def once(message: bytes) -> tuple[float, float]:
        start = time.thread_time()
        sender.transport.write(message)
        middle = time.thread_time()
        near.deliver_to(far)
        return middle - start, time.thread_time() - middle

    once(b"warm up")
    receiver.received = 0
    count, sending, receiving = _repeat(lambda: once(bytes(READ_SIZE)), seconds)
    if receiver.received != count * READ_SIZE:
        raise AssertionError("a layer lost or added bytes")
    small_count, *small = _repeat(lambda: once(bytes(SMALL)), seconds / 2)
    megabytes = count * READ_SIZE / 1e6
    return {
        "send": megabytes / sending,
        "receive": megabytes / receiving,
        "small": sum(small) / small_count * 1e6,
    }


def _repeat(step: Callable[[], tuple[float, float]], seconds: float) -> tuple[int, float, float]:
    count, first, second = 0, 0.0, 0.0
    while first + second < seconds:
        one, other = step()
        count, first, second = count + 1, first + one, second + other
    return count, first, second


def _build(stack: Stack, certs: Certs, sink: Sink, client: bool) -> Any:
    upper: Any = sink
    for layer in reversed(stack.layers):
        if layer == "smux":
            upper = _smux(upper, client)
        elif layer == "websocket":
            upper = _websocket(upper, client, stack.random_mask)
        else:
            upper = _tls(upper, client, certs)
    return upper


def _tls(upper: Any, client: bool, certs: Certs) -> TlsLayer:
    names = alpn.STREAM
    if client:
        context = certificates.client_context(ClientTls(ca=certs.ca, alpn=names))
        return TlsLayer(
            upper, context, server_side=False, server_name=SERVER_NAME, half_close=True
        )
    context, _ = certificates.server_context(
        ServerTls(cert=certs.cert, key=certs.key, alpn=names)
    )
    return TlsLayer(upper, context, server_side=True, half_close=True)


def _websocket(upper: Any, client: bool, random_mask: bool) -> Parked:
    return Parked(
        lambda transport: WebSocketLayer(upper, client=client, random_mask=random_mask).start(
            transport
        )
    )


def _smux(upper: Any, client: bool) -> Parked:
    def ready(transport: asyncio.Transport) -> None:
        session = SmuxSession(accept=None if client else lambda: upper)
        transport.set_protocol(session)
        session.connection_made(transport)
        transport.resume_reading()
        if client:
            session.open_stream(upper)

    return Parked(ready)
