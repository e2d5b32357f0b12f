"""What makes a TLS handshake fail, and what the peer hears of it: noise, ends, time."""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
import warnings

import pytest

from mtt.errors import NetworkError, NothingSaidError, PeerError
from mtt.layers import linger
from mtt.layers.tls import TlsLayer
from tests.layers.tls_side import client, server
from tests.support.certs import Certs
from tests.support.contexts import bare_context, client_hello
from tests.support.stacks import client_context, server_context
from tests.support.transports import FakeTransport, raw_peer, turns

ALERT = 21  # TLS record type; the body is level and description
FATAL = 2


async def answer_to(layer: TlsLayer, said: bytes, *, end: bool = False) -> bytes:
    """All that a peer hears that says this, until the layer closes the connection."""
    loop = asyncio.get_running_loop()
    async with raw_peer(layer) as sock:
        await loop.sock_sendall(sock, said)
        if end:
            sock.shutdown(socket.SHUT_WR)
        heard = b""
        while data := await loop.sock_recv(sock, 65536):
            heard += data
        return heard


# What is not TLS.


@pytest.mark.parametrize(
    "said",
    [b"\x00" * 20, b"SSH-2.0-OpenSSH_9\r\n", b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03",
     b"\x17\x03\x03\x00\x05hello", b"\x16\x03\x01\xff\xff" + b"a" * 70_000],
    ids=["zeros", "ssh", "short hello", "data before the handshake", "record too long"],
)  # fmt: skip
async def test_noise_is_a_peer_error_answered_as_by_openssl(said: bytes, certs: Certs) -> None:
    layer, recorder = server(certs)
    heard = await answer_to(layer, said)
    assert heard == openssl_answer(certs, said)
    assert isinstance(recorder.error, PeerError)
    assert str(recorder.error).startswith("TLS: ")
    assert recorder.transport is None
    assert layer.is_closing()


def openssl_answer(certs: Certs, said: bytes) -> bytes:
    """What OpenSSL itself answers."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    bare = server_context(certs).wrap_bio(incoming, outgoing, server_side=True)
    incoming.write(said)
    with pytest.raises(ssl.SSLError):
        bare.do_handshake()
    return outgoing.read()


async def test_fatal_alert_is_sent(certs: Certs) -> None:
    layer, _ = server(certs)
    heard = await answer_to(layer, b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03")
    assert heard[0] == ALERT
    assert heard[5] == FATAL


async def test_old_versions_get_a_protocol_version_alert(certs: Certs) -> None:
    context = bare_context(ssl.PROTOCOL_TLS_CLIENT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    layer, recorder = server(certs)
    heard = await answer_to(layer, client_hello(context, certs.name))
    assert (heard[0], heard[5:7]) == (ALERT, bytes((FATAL, 70)))
    assert isinstance(recorder.error, PeerError)


async def test_end_without_a_byte_is_a_separate_error(certs: Certs) -> None:
    layer, recorder = server(certs)
    assert await answer_to(layer, b"", end=True) == b""
    assert isinstance(recorder.error, NothingSaidError)


async def test_handshake_cut_anywhere_is_a_network_error(certs: Certs) -> None:
    hello = client_hello(client_context(certs), certs.name)
    for size in (1, 4, 5, 6, 60, len(hello) - 1, len(hello)):
        layer, recorder = server(certs)
        heard = await answer_to(layer, hello[:size], end=True)
        assert bool(heard) == (size == len(hello))  # no alert: web servers do not answer to an end
        assert isinstance(recorder.error, NetworkError)
        assert not isinstance(recorder.error, NothingSaidError)
        assert "during the TLS handshake" in str(recorder.error)
        assert recorder.transport is None


async def test_reset_during_the_handshake_is_a_network_error(certs: Certs) -> None:
    layer, recorder = client(certs)
    async with raw_peer(layer) as sock:
        await asyncio.get_running_loop().sock_recv(sock, 1)
        linger.reset_on_close(sock)
        sock.close()
        assert isinstance(await recorder.ended(), NetworkError)


async def test_damaged_hello_is_a_peer_or_network_error(certs: Certs) -> None:
    hello = client_hello(client_context(certs), certs.name)
    context = server_context(certs)
    rng = random.Random(31)
    for _ in range(150):
        noise = bytearray(hello)
        for _ in range(rng.randrange(1, 4)):
            noise[rng.randrange(len(noise))] = rng.randrange(256)
        layer, recorder = server(certs, context=context)
        transport = FakeTransport(layer)
        layer.connection_made(transport)
        feed(layer, bytes(noise))
        if not recorder.lost:
            layer.eof_received()
        await turns(3)
        assert isinstance(recorder.error, PeerError | NetworkError)
        transport.abort()
        await turns(2)


def feed(layer: TlsLayer, data: bytes) -> None:
    """What the event loop does with received data."""
    for at in range(0, len(data), 1 << 16):
        layer.data_received(data[at : at + (1 << 16)])


# Time.


async def test_slow_handshake_times_out(certs: Certs) -> None:
    for make in (server, client):
        layer, recorder = make(certs, handshake_time=0.05)
        async with raw_peer(layer) as sock:
            error = await recorder.ended()
            assert isinstance(error, NetworkError)
            assert "timed out" in str(error)
            sock.shutdown(socket.SHUT_RDWR)
