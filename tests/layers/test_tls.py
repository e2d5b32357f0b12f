"""The open TLS layer: records, pauses, and another implementation at the other end."""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from collections.abc import Callable
from typing import Any

import pytest

from mtt.layers.reads import READ_SIZE
from mtt.layers.tls import TlsLayer
from tests.layers.tls_side import Peer, both_versions
from tests.support.certs import Certs
from tests.support.stacks import client_context, server_context
from tests.support.transports import FakeTransport, Recorder, attach, tcp_sockets, turns

# Records.


@both_versions
async def test_records_may_be_cut_anywhere(version: ssl.TLSVersion, certs: Certs) -> None:
    rng = random.Random(41)
    async with Peer(certs, version) as one:
        said = b""
        for _ in range(60):
            data = rng.randbytes(rng.choice((1, 5, 300, 16384, 20_000)))
            records = one.say(data)
            said += data
            cut = rng.randrange(len(records) + 1)
            one.feed(records[:cut])
            one.feed(records[cut:])
            assert one.recorder.data == said
        for byte in one.say(b"byte by byte"):
            one.feed(bytes((byte,)))
        assert one.recorder.data == said + b"byte by byte"


@both_versions
async def test_reads_about_as_large_as_the_plaintext_buffer(
    version: ssl.TLSVersion, certs: Certs
) -> None:
    async with Peer(certs, version) as one:
        said = b""
        for size in (READ_SIZE, 98_303, 98_304, 98_305, 300_000):
            for record in (16384, 1000, 16383):
                data = random.Random(size).randbytes(size)
                stream = b"".join(one.say(data[at : at + record]) for at in range(0, size, record))
                one.feed(stream)
                said += data
                assert one.recorder.data == said, (size, record)


@both_versions
async def test_one_write_becomes_one_write_below(version: ssl.TLSVersion, certs: Certs) -> None:
    data = random.Random(42).randbytes(100_000)
    async with Peer(certs, version) as one:
        one.transport.writes.clear()
        one.layer.write(data)
        assert len(one.transport.writes) == 1
        assert one.heard() == data


@both_versions
async def test_data_right_after_the_handshake_are_delivered(
    version: ssl.TLSVersion, certs: Certs
) -> None:
    recorder = Recorder()
    layer = TlsLayer(recorder, server_context(certs, version), server_side=True)
    transport = FakeTransport(layer)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    other = client_context(certs, version).wrap_bio(incoming, outgoing, server_hostname=certs.name)
    layer.connection_made(transport)
    last = b""
    for _ in range(4):
        with contextlib.suppress(ssl.SSLWantReadError):
            other.do_handshake()
            other.write(b"early")
        last = outgoing.read()
        if not last:
            break
        layer.data_received(last)
        incoming.write(transport.take())
    assert recorder.data[:5] == b"early"
    transport.abort()
    await turns()


# Pauses.


@both_versions
async def test_paused_layer_delivers_nothing(version: ssl.TLSVersion, certs: Certs) -> None:
    async with Peer(certs, version) as one:
        one.layer.pause_reading()
        assert not one.transport.reading
        one.feed(one.say(b"x" * 40_000) + one.say(b"y"))
        await turns()
        assert not one.recorder.data
        one.layer.resume_reading()
        one.layer.pause_reading()  # changed its mind in the same turn
        await turns()
        assert not one.recorder.data
        one.layer.resume_reading()
        await turns()
        assert one.transport.reading
        assert one.recorder.data == b"x" * 40_000 + b"y"


@both_versions
async def test_protocol_that_pauses_at_each_piece_gets_all(
    version: ssl.TLSVersion, certs: Certs
) -> None:
    data = random.Random(43).randbytes(250_000)
    async with Peer(certs, version) as one:
        one.recorder.on_data = lambda _piece: one.layer.pause_reading()
        one.feed(one.say(data))
        one.feed(one.end())
        while len(one.recorder.data) < len(data):
            before = one.recorder.calls
            assert not one.recorder.eof
            one.layer.resume_reading()
            await turns(3)
            assert one.recorder.calls == before + 1
        one.layer.resume_reading()
        await turns(3)
        assert one.recorder.data == data
        assert one.recorder.eof


# A foreign stack: asyncio's own TLS.


@both_versions
@pytest.mark.parametrize("we_are", ["client", "server"])
async def test_exchange_with_the_tls_of_asyncio(
    we_are: str, version: ssl.TLSVersion, certs: Certs
) -> None:
    ours, theirs = tcp_sockets()
    recorder = Recorder()
    data = random.Random(49).randbytes(400_000)
    client = we_are == "client"
    layer = TlsLayer(
        recorder,
        (client_context if client else server_context)(certs, version),
        server_side=not client,
        server_name=certs.name if client else None,
    )
    tcp = attach(ours, layer)
    context: Callable[..., Any] = server_context if client else client_context
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    arguments: dict[str, Any] = {"ssl": context(certs, version), "sock": theirs}
    if client:
        transport, _ = await loop.connect_accepted_socket(
            lambda: asyncio.StreamReaderProtocol(reader), **arguments
        )
    else:
        transport, _ = await loop.create_connection(
            lambda: asyncio.StreamReaderProtocol(reader), server_hostname=certs.name, **arguments
        )
    await recorder.opened()
    transport.write(data)
    layer.write(data)
    assert await reader.readexactly(len(data)) == data
    assert await recorder.received(len(data)) == data
    transport.close()
    await recorder.at_eof()
    layer.close()
    assert await recorder.ended() is None
    assert tcp.is_closing()
