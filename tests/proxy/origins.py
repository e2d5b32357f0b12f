"""Origin servers for tests of the HTTP proxy, and what its clients ask and get."""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable

from mtt.layers.base import StreamTransport
from mtt.proxy.http import HttpConnection
from tests.proxy.direct import DirectProxy, direct_proxy
from tests.support.tunnels import Listening, Tcp, connect, port_of, serving

END = b"\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
OK_AND_KEEP = OK.replace(b"\r\n\r\n", b"\r\nConnection: keep-alive\r\n\r\n")
SIZE = 3_000_000
PAYLOAD = random.Random(2).randbytes(SIZE)

# Answers one request, given its head; returns whether to wait for another one.
Answer = Callable[[Tcp, bytes], Awaitable[bool | None]]


class Site:
    """An origin server and a proxy to it; `heads` are those of all requests, by connection."""

    def __init__(self, there: Listening, proxy: DirectProxy, heads: list[list[bytes]]) -> None:
        self.there = there
        self.proxy = proxy
        self.heads = heads
        self.base = f"http://127.0.0.1:{there.port}"

    @property
    def requests(self) -> list[bytes]:
        """The first lines of all requests."""
        return [head.partition(b" HTTP/")[0] for heads in self.heads for head in heads]

    @property
    def connection(self) -> HttpConnection:
        """The one of the only client, which has asked for something."""
        (connection,) = self.proxy.open_tunnels._carriers
        assert isinstance(connection, HttpConnection)
        return connection

    @property
    def near(self) -> StreamTransport:
        """The proxy's transport to the only client."""
        return self.connection.near

    async def client(self) -> Tcp:
        return await connect(port_of(self.proxy))

    def request(self, target: str, *lines: str, method: str = "GET", version: str = "1.1") -> bytes:
        first = f"{method} {self.base}{target} HTTP/{version}"
        return "\r\n".join([first, "Host: x", *lines, "", ""]).encode()


def chunked(data: bytes, trailer: bytes = b"") -> bytes:
    rng, at, wire = random.Random(3), 0, bytearray()
    while at < len(data):
        piece = data[at : at + rng.choice((1, 10, 5_000, 100_000))]
        wire += b"%x\r\n%b\r\n" % (len(piece), piece)
        at += len(piece)
    return bytes(wire + b"0\r\n" + trailer + b"\r\n")


async def ok(connection: Tcp, head: bytes) -> bool:
    """Answer with the request's target."""
    target = head.split(b" ")[1]
    await connection.send(
        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(target), target)
    )
    return True


@contextlib.asynccontextmanager
async def site(answer: Answer = ok, **options: object) -> AsyncIterator[Site]:
    heads: list[list[bytes]] = []

    async def serve(connection: Tcp) -> None:
        mine: list[bytes] = []
        heads.append(mine)
        while head := await connection.until(END):
            mine.append(head)
            if not await answer(connection, head):
                break

    async with serving(serve) as there, direct_proxy(**options) as proxy:  # type: ignore[arg-type]
        yield Site(there, proxy, heads)


async def read_answer(client: Tcp, *, body: bool = True) -> tuple[bytes, bytes]:
    """The head and the body of an answer with Content-Length or chunks."""
    head = await client.until(END)
    lower = head.lower()
    if not body:
        return head, b""
    if b"\r\ntransfer-encoding: chunked\r\n" in lower:
        return head, await client.until(b"0\r\n\r\n")
    _, found, rest = lower.partition(b"\r\ncontent-length: ")
    assert found, head
    return head, await client.exactly(int(rest.partition(b"\r\n")[0]))
