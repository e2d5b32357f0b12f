"""What an observer between client and server sees: the sizes of our client's TLS records.

The expected sizes are those of the padding scheme, written by hand: no code of ours computes
them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.anytls.proxying import check_echo, client_for, through
from tests.anytls.serving import server_for
from tests.support.certs import Certs
from tests.support.tunnels import (
    PASSWORD,
    SOON,
    Tcp,
    client_of,
    connect,
    echo,
    eventually,
    port_of,
    server_at,
    serving,
)

# TLS 1.3 (RFC 8446, 5.2): the type of the content, and the tag of all its ciphers.
OVERHEAD = 1 + 16
APPLICATION_DATA = 23
# Finished, the only encrypted message of a client's handshake: a header, and a hash of the length
# of SHA-256 or SHA-384.
FINISHED = (4 + 32, 4 + 48)

SCHEME = b"""stop=5
0=50-50
1=300-300
2=120-120,c,400-400
3=70-70,80-80
4=30-30,c,500-500
"""
# Packet 0: hash, length, 50 bytes of padding.
PREAMBLE = 32 + 2 + 50
# Packet 1: settings, SYN and destination have less than 300 - 7 bytes, and are filled up.
FIRST = 300


class Recording:
    """A proxy that notes the sizes of what the client sends, connection by connection."""

    def __init__(self, server: int) -> None:
        self._server = server
        self._sent: list[bytearray] = []

    async def carry(self, client: Tcp) -> None:
        sent = bytearray()
        self._sent.append(sent)
        async with await connect(self._server) as server:
            up = asyncio.create_task(self._copy(client, server, sent))
            down = asyncio.create_task(self._copy(server, client))
            try:
                await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (up, down):
                    task.cancel()
                await asyncio.gather(up, down, return_exceptions=True)

    @staticmethod
    async def _copy(source: Tcp, sink: Tcp, noted: bytearray | None = None) -> None:
        while data := await source.read():
            if noted is not None:
                noted += data
            await sink.send(data)

    def plaintexts(self, connection: int) -> list[int]:
        """The lengths of the client's records in there, without the handshake's."""
        data, at = self._sent[connection], 0
        lengths = []
        while at + 5 <= len(data):
            size = int.from_bytes(data[at + 3 : at + 5], "big")
            if data[at] == APPLICATION_DATA:
                lengths.append(size - OVERHEAD)
            at += 5 + size
        assert lengths[0] in FINISHED
        return lengths[1:]


@pytest.fixture
def scheme(tmp_path: Path) -> dict[str, str]:
    """The server's option for the file with SCHEME."""
    path = tmp_path / "scheme"
    path.write_bytes(SCHEME)
    return {"padding-scheme": str(path)}


@contextlib.asynccontextmanager
async def recording(server: int) -> AsyncIterator[tuple[Recording, int]]:
    there = Recording(server)
    async with serving(there.carry) as proxy:
        yield there, proxy.port


async def ask(application: Tcp, size: int) -> None:
    """Send as many bytes at once, and wait for as many."""
    data = bytes(size)
    await application.send(data)
    assert await application.exactly(size) == data


async def test_records_have_the_sizes_of_the_scheme(certs: Certs, scheme: dict[str, str]) -> None:
    async with (
        asyncio.timeout(SOON),
        serving(echo) as there,
        server_for(certs, **scheme) as server,
        recording(port_of(server)) as (seen, port),
        client_for(certs, port, dr=True, **{"tls-min": "1.3"}) as client,
    ):
        await check_echo(client, there.port)  # learns the scheme
        async with through(client, there.port) as application:
            assert seen.plaintexts(1) == [PREAMBLE, FIRST]
            for size in (200, 10, 600, 5, 1000):
                await ask(application, size)
        await eventually(lambda: seen.plaintexts(1)[-1] == 2)
        assert seen.plaintexts(1) == [
            PREAMBLE,
            FIRST,
            # 7 + 200 bytes: 120 of them, and as some are left the rest, filled up.
            120, 400,
            # 7 + 10 bytes, filled up; then padding of 80 bytes with a header of its own.
            70, 80 + 7,
            # 7 + 600 bytes: 30 of them, 500, and what is left, unshaped.
            30, 500, 77,
            # stop=5: no more shaping.
            7 + 5, 7 + 1000,
            # FIN, and the alert close_notify of TLS.
            7, 2,
        ]  # fmt: skip


async def test_default_scheme_applies_until_another_is_learned(
    certs: Certs, scheme: dict[str, str]
) -> None:
    """In its bounds (the upper ones are exclusive); the server's counts from the next packet on."""
    async with (
        asyncio.timeout(SOON),
        serving(echo) as there,
        server_for(certs, **scheme) as server,
        recording(port_of(server)) as (seen, port),
        client_for(certs, port, **{"tls-min": "1.3"}) as client,
        through(client, there.port) as application,
    ):
        await ask(application, 200)
        await ask(application, 10)
        preamble, first, *rest = seen.plaintexts(0)
        assert preamble == 32 + 2 + 30
        assert 100 <= first < 400
        # What did not fit into that, if anything, came unshaped.
        assert rest[-4:] == [120, 400, 70, 80 + 7]
        assert len(rest) == 4 or (len(rest) == 5 and rest[0] < 100)


async def test_tunnel_mode_follows_the_scheme(certs: Certs, scheme: dict[str, str]) -> None:
    async with (
        asyncio.timeout(SOON),
        serving(echo) as there,
        server_at("anytls", there.port, certs, **scheme) as server,
        recording(port_of(server)) as (seen, port),
        client_of("anytls", port, certs, dr=True, p=PASSWORD, **{"tls-min": "1.3"}) as client,
    ):
        for _ in range(2):
            async with await connect(port_of(client)) as application:
                await ask(application, 200)
                await ask(application, 10)
        assert seen.plaintexts(1)[:6] == [PREAMBLE, FIRST, 120, 400, 70, 80 + 7]
