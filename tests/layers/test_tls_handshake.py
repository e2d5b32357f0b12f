"""The TLS layer until it is open: what makes a handshake fail, and what both ends hear of it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import ssl
import warnings
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from mtt.errors import NetworkError, NothingSaidError, PeerError
from mtt.layers import linger
from mtt.layers.parked import Parked
from mtt.layers.tls import TlsLayer
from mtt.trust import certificates
from mtt.trust.identity import check_pin
from mtt.trust.tls_options import ServerTls
from tests.support.certs import Certs
from tests.support.clock import Clock
from tests.support.contexts import bare_context
from tests.support.stacks import client_context, server_context
from tests.support.transports import FakeTransport, Recorder, attach, raw_peer, tcp_sockets, turns

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]

ALERT = 21  # TLS record type; the body is level and description
FATAL = 2

# Bytes that TLS 1.3 adds to a record: header, content type, tag; and of a client's Finished message
# with SHA-256, less than any cipher suite makes it.
TLS13_OVERHEAD = 5 + 1 + 16
FINISHED = TLS13_OVERHEAD + 4 + 32


def server(certs: Certs, **options: Any) -> tuple[TlsLayer, Recorder]:
    recorder = Recorder()
    context = options.pop("context", None) or server_context(certs)
    return TlsLayer(recorder, context, server_side=True, **options), recorder


def client(certs: Certs, **options: Any) -> tuple[TlsLayer, Recorder]:
    recorder = Recorder()
    context = options.pop("context", None) or client_context(certs)
    name = options.pop("server_name", certs.name)
    return TlsLayer(recorder, context, server_side=False, server_name=name, **options), recorder


@contextlib.asynccontextmanager
async def joined(one: TlsLayer, other: TlsLayer) -> AsyncIterator[None]:
    """Two layers on the ends of a TCP connection."""
    socks = tcp_sockets()
    transports = [attach(socks[0], one), attach(socks[1], other)]
    try:
        yield
    finally:
        for transport in transports:
            transport.abort()
        await turns()


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
async def test_noise_is_a_peers_error_and_answered_as_openssl_does(
    said: bytes, certs: Certs
) -> None:
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


async def test_the_alert_is_really_sent(certs: Certs) -> None:
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
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    old = context.wrap_bio(incoming, outgoing, server_hostname=certs.name)
    with pytest.raises(ssl.SSLWantReadError):
        old.do_handshake()
    layer, recorder = server(certs)
    heard = await answer_to(layer, outgoing.read())
    assert (heard[0], heard[5:7]) == (ALERT, bytes((FATAL, 70)))
    assert isinstance(recorder.error, PeerError)


async def test_a_connection_without_a_byte_is_told_apart(certs: Certs) -> None:
    layer, recorder = server(certs)
    assert await answer_to(layer, b"", end=True) == b""
    assert isinstance(recorder.error, NothingSaidError)


async def test_a_handshake_cut_anywhere(certs: Certs) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    peer = client_context(certs).wrap_bio(incoming, outgoing, server_hostname=certs.name)
    with pytest.raises(ssl.SSLWantReadError):
        peer.do_handshake()
    hello = outgoing.read()
    for size in (1, 4, 5, 6, 60, len(hello) - 1, len(hello)):
        layer, recorder = server(certs)
        heard = await answer_to(layer, hello[:size], end=True)
        assert bool(heard) == (size == len(hello))  # no alert: web servers do not answer to an end
        assert isinstance(recorder.error, NetworkError)
        assert not isinstance(recorder.error, NothingSaidError)
        assert "during the TLS handshake" in str(recorder.error)
        assert recorder.transport is None


async def test_a_reset_during_the_handshake(certs: Certs) -> None:
    layer, recorder = client(certs)
    async with raw_peer(layer) as sock:
        await asyncio.get_running_loop().sock_recv(sock, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger._RESET)
        sock.close()
        assert isinstance(await recorder.ended(), NetworkError)


async def test_noise_never_gives_another_error(certs: Certs) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    peer = client_context(certs).wrap_bio(incoming, outgoing, server_hostname=certs.name)
    with pytest.raises(ssl.SSLWantReadError):
        peer.do_handshake()
    hello = outgoing.read()
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


async def test_a_peer_that_is_too_slow(certs: Certs) -> None:
    for make in (server, client):
        layer, recorder = make(certs, handshake_time=0.05)
        async with raw_peer(layer) as sock:
            error = await recorder.ended()
            assert isinstance(error, NetworkError)
            assert "timed out" in str(error)
            sock.shutdown(socket.SHUT_RDWR)


async def test_time_stops_when_the_handshake_is_over(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    one, near = client(certs, handshake_time=10)
    other, far = server(certs, handshake_time=10)
    async with joined(one, other):
        await near.opened()
        await far.opened()
        await clock.passes(11)  # beyond both limits
        one.write(b"still there")
        assert await far.received(11) == b"still there"


# Who the peer is.


@pytest.mark.parametrize("version", VERSIONS)
async def test_an_unknown_authority(version: ssl.TLSVersion, certs: Certs) -> None:
    context = bare_context(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(certs.other_ca)
    context.maximum_version = version
    one, near = client(certs, context=context)
    other, far = server(certs)
    async with joined(one, other):
        error = await near.ended()
        assert isinstance(error, PeerError)
        assert "certificate not accepted" in str(error)
        # The server heard our alert: with TLS 1.3 it had thought that all was well.
        assert "unknown ca" in str(await far.ended())
        assert near.transport is None


async def test_a_wrong_name(certs: Certs) -> None:
    one, near = client(certs, server_name="other.example")
    other, far = server(certs)
    async with joined(one, other):
        assert "certificate not accepted" in str(await near.ended())
        await far.ended()


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_check_of_ones_own(version: ssl.TLSVersion, certs: Certs) -> None:
    _, identity = certificates.server_context(ServerTls(cert=certs.cert, key=certs.key))
    assert identity.pin

    def check(pin: str) -> Callable[[ssl.SSLObject], None]:
        def verify(connection: ssl.SSLObject) -> None:
            check_pin(connection.getpeercert(binary_form=True) or b"", (pin,))

        return verify

    context = server_context(certs, version)
    one, near = client(certs, verify=check(identity.pin))
    other, far = server(certs, context=context)
    async with joined(one, other):
        await near.opened()
        await far.opened()
    one, near = client(certs, verify=check("sha256/" + "A" * 43 + "="))
    other, far = server(certs, context=context)
    async with joined(one, other):
        error = await near.ended()
        assert isinstance(error, PeerError)
        assert identity.pin in str(error)
        assert near.transport is None
        assert await far.ended() is not None
        assert not far.data


# Sessions.


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_session_is_resumed(version: ssl.TLSVersion, certs: Certs) -> None:
    sessions: list[ssl.SSLSession] = []
    near_context, far_context = client_context(certs, version), server_context(certs, version)
    reused = []
    for _ in range(3):
        session = sessions[-1] if sessions else None
        one, near = client(
            certs,
            context=near_context,
            session=session,
            on_end=lambda connection: sessions.append(connection.session),
        )
        other, far = server(certs, context=far_context)
        async with joined(one, other):
            await far.opened()
            other.write(b"x")  # the tickets of TLS 1.3 come before it
            await near.received(1)
            reused.append(near.transport.get_extra_info("ssl_object").session_reused)
            one.close()
            await far.at_eof()
            other.close()
            await near.ended()
    assert reused == [False, True, True]
    assert len(sessions) == 3


async def test_a_failed_handshake_gives_no_session(certs: Certs) -> None:
    ended: list[ssl.SSLObject] = []
    one, near = client(certs, server_name="other.example", on_end=ended.append)
    other, _ = server(certs)
    async with joined(one, other):
        await near.ended()
    assert ended == []


# ALPN, and half-close that hangs on it.


@pytest.mark.parametrize(
    ("ours", "theirs", "agreed"),
    [(["http/1.1"], ["http/1.1"], "http/1.1"), (["h2"], ["http/1.1"], None), (None, ["h2"], None),
     (["x", "http/1.1"], None, None)],
)  # fmt: skip
async def test_half_close_needs_alpn(
    ours: list[str] | None, theirs: list[str] | None, agreed: str | None, certs: Certs
) -> None:
    one, near = client(certs, context=client_context(certs, None, ours), half_close=True)
    other, far = server(certs, context=server_context(certs, None, theirs), half_close=True)
    async with joined(one, other):
        await near.opened()
        await far.opened()
        assert one.get_extra_info("ssl_object").selected_alpn_protocol() == agreed
        assert one.can_write_eof() is other.can_write_eof() is (agreed is not None)


# The client's last message.


@pytest.mark.parametrize("early", [b"", b"first words"])
async def test_the_end_of_the_handshake_travels_with_the_first_data(
    early: bytes, certs: Certs
) -> None:
    """One packet instead of two; and when there are no data, it goes all the same."""
    parked = Parked()
    one = TlsLayer(parked, client_context(certs), server_side=False, server_name=certs.name)
    other, far = server(certs)

    async def write_at_once() -> int:
        transport = await parked.opened()
        before = one.handed_over
        transport.write(early)
        return one.handed_over - before

    writing = asyncio.get_running_loop().create_task(write_at_once())
    async with joined(one, other):
        await far.opened()
        assert await far.received(len(early)) == early
        record = len(early) + TLS13_OVERHEAD
        assert await writing >= record + FINISHED if early else not await writing


# Ends before there is a beginning.


async def test_abort_in_the_middle(certs: Certs) -> None:
    for end in (TlsLayer.abort, TlsLayer.close):
        layer, recorder = client(certs)
        async with raw_peer(layer) as sock:
            await asyncio.get_running_loop().sock_recv(sock, 1)
            end(layer)
            layer.write(b"late")
            assert layer.is_closing()
            assert await recorder.ended() is None
            with pytest.raises(ConnectionResetError):
                while await asyncio.get_running_loop().sock_recv(sock, 65536):
                    pass


async def test_abort_before_there_is_a_connection(certs: Certs) -> None:
    layer, recorder = server(certs)
    layer.abort()
    layer.abort()
    layer.close()
    transport = FakeTransport(layer)
    layer.connection_made(transport)
    await turns()
    assert transport.aborted  # nobody else would ever close it
    assert recorder.transport is None


async def test_the_upper_closes_as_soon_as_it_is_made(certs: Certs) -> None:
    class Closer(Recorder):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            transport.write(b"bye")
            transport.close()

    upper = Closer()
    one, near = client(certs)
    other = TlsLayer(upper, server_context(certs), server_side=True)
    async with joined(one, other):
        assert await near.received(3) == b"bye"
        await near.at_eof()
        one.close()
        assert await upper.ended() is None
