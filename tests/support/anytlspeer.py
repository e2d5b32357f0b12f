"""What a foreign AnyTLS client says on the wire, for a client in the test's hands.

This shares no code with the package under test, so that a mistake cannot cancel itself out.
"""

from __future__ import annotations

import hashlib
import ipaddress
import struct
from typing import Self

from tests.support.certs import Certs
from tests.support.gopeer import tls_connect
from tests.support.tunnels import Tcp

WASTE, SYN, PSH, FIN, SETTINGS, ALERT, UPDATE = range(7)
SYNACK, HEART_REQUEST, HEART_RESPONSE, SERVER_SETTINGS = range(7, 11)

# Of the recordings, too.
PASSWORD = "test-password"
MD5 = "75cff2ad89aadf5e257059ee571ebe11"  # of the default padding scheme

UOT = "sp.v2.udp-over-tcp.arpa"
UOT_1 = "sp.udp-over-tcp.arpa"

Frame = tuple[int, int, bytes]


def hashed(password: str = PASSWORD) -> bytes:
    return hashlib.sha256(password.encode()).digest()


def preamble(password: str = PASSWORD, padding: int = 30) -> bytes:
    return hashed(password) + struct.pack(">H", padding) + bytes(padding)


def frame(command: int, stream: int = 0, data: bytes = b"") -> bytes:
    return struct.pack(">BIH", command, stream, len(data)) + data


def settings(version: int = 2, md5: str = MD5) -> bytes:
    return frame(SETTINGS, 0, f"v={version}\nclient=test/1\npadding-md5={md5}".encode())


def address(host: str, port: int, types: tuple[int, int, int] = (1, 3, 4)) -> bytes:
    """An address with the type numbers for IPv4, names and IPv6: those of SOCKS5."""
    ipv4, name, ipv6 = types
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        head = bytes((name, len(host))) + host.encode()
    else:
        head = bytes((ipv4 if ip.version == 4 else ipv6,)) + ip.packed
    return head + struct.pack(">H", port)


def datagram(host: str, port: int, payload: bytes) -> bytes:
    """A datagram of UDP over TCP with its address."""
    return address(host, port, (0, 2, 1)) + struct.pack(">H", len(payload)) + payload


def short(payload: bytes) -> bytes:
    """One without."""
    return struct.pack(">H", len(payload)) + payload


class AnyTlsPeer:
    """A client with one session; streams are opened by their number."""

    def __init__(self, tls: Tcp) -> None:
        self.tls = tls

    async def send(self, *frames: bytes) -> None:
        await self.tls.send(b"".join(frames))

    async def open(self, stream: int, host: str, port: int, data: bytes = b"") -> None:
        await self.send(frame(SYN, stream), frame(PSH, stream, address(host, port) + data))

    async def frame(self) -> Frame:
        """The next frame of the server. Raises EOFError at the end."""
        head = await self.tls.exactly(7)
        if len(head) < 7:
            raise EOFError
        command, stream, size = struct.unpack(">BIH", head)
        return command, stream, await self.tls.exactly(size)

    async def data(self, stream: int, size: int) -> bytes:
        """So many bytes of a stream; nothing else may come."""
        found = bytearray()
        while len(found) < size:
            command, number, data = await self.frame()
            assert (command, number) == (PSH, stream), (command, number, data)
            found += data
        return bytes(found)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.tls.close()


async def peer_connect(
    port: int, certs: Certs, *, password: str = PASSWORD, version: int = 2
) -> AnyTlsPeer:
    """A client that has shown its password and said what it is."""
    peer = AnyTlsPeer(await tls_connect(port, certs))
    await peer.send(preamble(password), settings(version))
    if version >= 2:
        assert await peer.frame() == (SERVER_SETTINGS, 0, b"v=2")
    return peer
