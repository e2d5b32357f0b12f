"""A DNS server on loopback whose answers a test writes, and the clock of a resolver."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from mtt.net import resolve

V4, V6 = socket.AF_INET, socket.AF_INET6
A, CNAME, AAAA = 1, 5, 28

Record = tuple[bytes, int, int, bytes]  # owner on the wire, type, TTL, data

QNAME = b"\xc0\x0c"  # a pointer to the name in the question, as real servers write it


def wire_name(name: str) -> bytes:
    return b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0"


def address(ip: str, ttl: int = 60, owner: bytes = QNAME) -> Record:
    parsed = ipaddress.ip_address(ip)
    return owner, A if parsed.version == 4 else AAAA, ttl, parsed.packed


def alias(target: str, ttl: int = 60, owner: bytes = QNAME) -> Record:
    return owner, CNAME, ttl, wire_name(target)


def qtype(query: bytes) -> int:
    return int.from_bytes(query[-4:-2], "big")


def qname(query: bytes) -> str:
    labels, at = [], 12
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode())
        at += 1 + query[at]
    return ".".join(labels)


def reply(query: bytes, *records: Record, rcode: int = 0, truncated: bool = False) -> bytes:
    flags = 0x8180 | rcode | (0x0200 if truncated else 0)
    message = query[:2] + struct.pack("!5H", flags, 1, len(records), 0, 0) + query[12:]
    for owner, rtype, ttl, data in records:
        message += owner + struct.pack("!HHIH", rtype, 1, ttl, len(data)) + data
    return message


def holding(*ips: str, ttl: int = 60) -> Handler:
    """A handler that gives those of the addresses that fit to the question."""

    def answer(query: bytes, over_tcp: bool) -> list[bytes]:
        records = [address(ip, ttl) for ip in ips]
        return [reply(query, *(record for record in records if record[1] == qtype(query)))]

    return answer


Handler = Callable[[bytes, bool], list[bytes]]
"""From (query, whether over TCP) to the messages to send back, maybe none."""


class FakeDns(asyncio.DatagramProtocol):
    """Answers by `handler` and notes the questions as (name, type, over TCP)."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.seen: list[tuple[str, int, bool]] = []
        self.asked = asyncio.Event()
        self.address = ("127.0.0.1", 0)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        for message in self._answers(data, False):
            self.transport.sendto(message, addr)

    async def serve_stream(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            query = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
            for message in self._answers(query, True):
                framed = len(message).to_bytes(2, "big") + message
                writer.write(framed[:1])  # the length itself may come in pieces
                await writer.drain()
                writer.write(framed[1:])
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    def _answers(self, query: bytes, over_tcp: bool) -> list[bytes]:
        self.seen.append((qname(query), qtype(query), over_tcp))
        self.asked.set()
        return self.handler(query, over_tcp)


@contextlib.asynccontextmanager
async def fake_dns(handler: Handler) -> AsyncIterator[FakeDns]:
    """Run a server on one port of UDP and TCP."""
    loop = asyncio.get_running_loop()
    fake = FakeDns(handler)
    for _ in range(16):  # a port that is free for TCP may be taken for UDP
        stream = await asyncio.start_server(fake.serve_stream, "127.0.0.1", 0)
        fake.address = stream.sockets[0].getsockname()
        datagram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            datagram.bind(fake.address)
        except OSError:
            datagram.close()
            stream.close()
            continue
        break
    else:
        raise AssertionError("no port is free for both TCP and UDP")
    transport, _ = await loop.create_datagram_endpoint(lambda: fake, sock=datagram)
    try:
        yield fake
    finally:
        transport.close()
        stream.close()
        await stream.wait_closed()


class Clock:
    """The time as the cache sees it; timers go their own way."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead = 0.0
        monkeypatch.setattr(resolve, "monotonic", lambda: time.monotonic() + self.ahead)
