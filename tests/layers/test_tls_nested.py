"""TLS inside TLS, as through an HTTP proxy that is reached by TLS itself."""

from __future__ import annotations

import random

import pytest

from tests.support.certs import Certs
from tests.support.stacks import Stack
from tests.support.transports import turns

NESTED = Stack("tls-tls", ("tls", "tls"))


@pytest.mark.parametrize("sizes", [[1] * 100, [300_000], [16_384, 1, 70_000, 20_000, 5]])
async def test_data_passes_unchanged(sizes: list[int], certs: Certs) -> None:
    """Both layers decrypt into the same buffer."""
    rng = random.Random(1)
    async with NESTED.open(certs) as (client, server):
        for sender, receiver in ((client, server), (server, client)):
            data = b""
            for size in sizes:
                piece = rng.randbytes(size)
                data += piece
                sender.transport.write(piece)
                await turns(3)
            assert await receiver.recorder.received(len(data)) == data


async def test_records_in_one_read_pass_unchanged(certs: Certs) -> None:
    rng = random.Random(2)
    pieces = [rng.randbytes(rng.choice((1, 100, 5_000, 16_384))) for _ in range(60)]
    async with NESTED.open(certs) as (client, server):
        for piece in pieces:
            client.transport.write(piece)
        data = b"".join(pieces)
        assert await server.recorder.received(len(data)) == data


async def test_each_direction_ends_by_itself(certs: Certs) -> None:
    async with NESTED.open(certs) as (client, server):
        client.transport.write(b"question")
        client.transport.write_eof()
        assert await server.recorder.at_eof() == b"question"
        server.transport.write(b"a late answer")
        server.transport.write_eof()
        assert await client.recorder.at_eof() == b"a late answer"


async def test_cut_is_seen(certs: Certs) -> None:
    async with NESTED.open(certs) as (client, server):
        client.transport.abort()
        assert await server.recorder.ended() is not None
        assert not server.recorder.eof
