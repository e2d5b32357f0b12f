"""The TLS layer until it is open: who the peer is, sessions, ALPN, early ends."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from mtt.errors import PeerError
from mtt.layers.parked import Parked
from mtt.layers.tls import TlsLayer
from mtt.trust import certificates
from mtt.trust.identity import check_pin
from mtt.trust.tls_options import ServerTls
from tests.layers.tls_side import both_versions, client, server
from tests.support.certs import Certs
from tests.support.clock import Clock
from tests.support.contexts import bare_context
from tests.support.stacks import client_context, server_context
from tests.support.transports import FakeTransport, Recorder, attach, raw_peer, tcp_sockets, turns

# Bytes that TLS 1.3 adds to a record: header, content type, tag; and of a client's Finished message
# with SHA-256, less than any cipher suite makes it.
TLS13_OVERHEAD = 5 + 1 + 16
FINISHED = TLS13_OVERHEAD + 4 + 32


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


async def test_handshake_timeout_ends_with_the_handshake(
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


# Certificates.


@both_versions
async def test_unknown_authority_fails_at_both_ends(version: ssl.TLSVersion, certs: Certs) -> None:
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


async def test_wrong_name_fails_at_both_ends(certs: Certs) -> None:
    one, near = client(certs, server_name="other.example")
    other, far = server(certs)
    async with joined(one, other):
        assert "certificate not accepted" in str(await near.ended())
        await far.ended()


@both_versions
async def test_pin_is_checked_within_the_handshake(version: ssl.TLSVersion, certs: Certs) -> None:
    _, identity = certificates.server_context(ServerTls(cert=certs.cert, key=certs.key))
    assert identity.words.pin

    def check(pin: str) -> Callable[[ssl.SSLObject], None]:
        def verify(connection: ssl.SSLObject) -> None:
            check_pin(connection.getpeercert(binary_form=True) or b"", (pin,))

        return verify

    context = server_context(certs, version)
    one, near = client(certs, verify=check(identity.words.pin))
    other, far = server(certs, context=context)
    async with joined(one, other):
        await near.opened()
        await far.opened()
    one, near = client(certs, verify=check("sha256/" + "A" * 43 + "="))
    other, far = server(certs, context=context)
    async with joined(one, other):
        error = await near.ended()
        assert isinstance(error, PeerError)
        assert identity.words.pin in str(error)
        assert near.transport is None
        assert await far.ended() is not None
        assert not far.data


# Sessions.


@both_versions
async def test_session_is_resumed(version: ssl.TLSVersion, certs: Certs) -> None:
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
async def test_first_data_travel_with_the_end_of_the_handshake(early: bytes, certs: Certs) -> None:
    """One packet instead of two; and when there are no data, it goes all the same."""
    parked = Parked()
    one = TlsLayer(parked, client_context(certs), server_side=False, server_name=certs.name)
    other, far = server(certs)

    async def write_at_once() -> int:
        transport = await parked.opened()
        before = one.socket_written
        transport.write(early)
        return one.socket_written - before

    writing = asyncio.get_running_loop().create_task(write_at_once())
    async with joined(one, other):
        await far.opened()
        assert await far.received(len(early)) == early
        record = len(early) + TLS13_OVERHEAD
        assert await writing >= record + FINISHED if early else not await writing


# Ends before there is a beginning.


async def test_abort_and_close_during_the_handshake_reset(certs: Certs) -> None:
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
    assert transport.aborted  # no other object would ever close it
    assert recorder.transport is None


async def test_protocol_that_closes_at_once_is_delivered(certs: Certs) -> None:
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
