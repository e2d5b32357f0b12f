"""UDP ASSOCIATE with a control connection, a UDP socket and an echoing channel."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mtt.errors import DestinationError, NetworkError
from mtt.outcome import Outcome
from mtt.proxy import port as proxy_port
from mtt.wire.socks import datagram_header, parse_datagram
from tests.proxy.direct import DirectProxy, direct_proxy
from tests.support.tunnels import Tcp, connect, port_of

NAMED = datagram_header("name.test", 53)
NUMBERED = datagram_header("2001:db8::1", 65535)


def request(port: int = 0) -> bytes:
    return b"\5\1\0" + b"\5\3\0\1\0\0\0\0" + port.to_bytes(2, "big")


class Udp:
    """A client's UDP socket."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET,
                                  socket.SOCK_DGRAM)  # fmt: skip
        self.sock.setblocking(False)
        self.sock.bind((host, 0))
        self.port: int = self.sock.getsockname()[1]

    def send(self, data: bytes, port: int, host: str = "127.0.0.1") -> None:
        self.sock.sendto(data, (host, port))

    async def receive(self) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self.sock, 65536)

    def __enter__(self) -> Udp:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.sock.close()


async def ask(control: Tcp, port: int = 0) -> int:
    """Request an association for datagrams from `port`. Returns the port to send them to."""
    await control.send(request(port))
    answer = await control.exactly(2 + 10)
    assert answer[:10] == b"\5\0\5\0\0\1\x7f\0\0\1"
    return int.from_bytes(answer[10:], "big")


@contextlib.asynccontextmanager
async def associated(port: int = 0, **options: Any) -> AsyncIterator[tuple[DirectProxy, Tcp, int]]:
    """Yield the proxy, the control connection and the UDP port."""
    async with (
        direct_proxy(udp=True, **options) as proxy,
        await connect(port_of(proxy)) as control,
    ):
        yield proxy, control, await ask(control, port)


async def dropped(caplog: pytest.LogCaptureFixture, why: str, count: int = 1) -> None:
    """Wait until `count` datagrams were dropped for that reason."""
    while caplog.text.count(f"a datagram was dropped: {why}") < count:
        await asyncio.sleep(0.001)


async def over(proxy: DirectProxy) -> None:
    while proxy.proxy.associations or proxy.tunnels:
        await asyncio.sleep(0.001)
    assert all(channel.closed for channel in proxy.channels)


async def test_datagrams_pass_with_their_addresses() -> None:
    async with associated() as (proxy, control, port):
        with Udp() as client:
            for header, payload in (
                (NAMED, b"hello"), (NUMBERED, b"x" * 1400), (NAMED, b""),
                (NAMED, b"y" * 60_000),
            ):  # fmt: skip
                client.send(header + payload, port)
                assert await client.receive() == header + payload.upper()
            # Full cone: any host that knows the port may answer.
            proxy.channels[0].association.deliver("192.0.2.7", 7, b"from elsewhere")
            answer = await client.receive()
            assert parse_datagram(answer)[:2] == ("192.0.2.7", 7)
        assert proxy.channels[0].sent[0] == ("name.test", 53, b"hello")
        control.close()
        await over(proxy)


async def test_datagram_from_another_port_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with associated() as (proxy, _, port):
        with Udp() as client, Udp() as stranger:
            # A malformed datagram does not make its sender the client.
            stranger.send(b"nonsense", port)
            await dropped(caplog, "")
            client.send(NAMED + b"first", port)
            await client.receive()
            stranger.send(NAMED + b"me too", port)
            await dropped(caplog, "not from the client's address")
            assert [payload for _, _, payload in proxy.channels[0].sent] == [b"first"]


async def test_announced_port_is_enforced(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with Udp() as client, Udp() as stranger:
        async with associated(client.port) as (_, _, port):
            stranger.send(NAMED + b"me first", port)
            await dropped(caplog, "not from the client's address")
            client.send(NAMED + b"hello", port)
            assert await client.receive() == NAMED + b"HELLO"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has 127.0.0.2 by itself")
async def test_datagram_from_another_host_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with associated() as (proxy, _, port):
        with Udp("127.0.0.2") as stranger:
            stranger.send(NAMED + b"me", port)
            await dropped(caplog, "not from the client's address")
        assert proxy.channels[0].sent == []


@pytest.mark.parametrize(
    ("datagram", "why"),
    [
        (b"", "an incomplete header"),
        (b"\0\0\1" + NAMED[3:] + b"part", "a fragment"),
        (b"\0\0\0\2\0", "unknown address type 2"),
        (b"\0\0\0\3\0\0\x35", "an empty domain name"),
    ],
)
async def test_malformed_datagram_is_dropped(
    datagram: bytes, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with associated() as (_, _, port):
        with Udp() as client:
            client.send(datagram, port)
            await dropped(caplog, why)
            client.send(NAMED + b"hello", port)
            assert await client.receive() == NAMED + b"HELLO"


async def test_undeliverable_replies_are_dropped(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with associated() as (proxy, _, port):
        association = proxy.channels[0].association
        association.deliver("192.0.2.7", 7, b"nobody is there yet")
        with Udp() as client:
            client.send(NAMED + b"hello", port)
            assert await client.receive() == NAMED + b"HELLO"
            association.deliver("192.0.2.7", 7, b"x" * 65527)  # too large with a header
            await dropped(caplog, "message too long")
            association.deliver("no name", 7, b"")
            await dropped(caplog, "a domain name with spaces")
            association.pause_writing()
            association.deliver("192.0.2.7", 7, b"")
            await dropped(caplog, "the socket's send buffer is full")
            association.resume_writing()
            association.deliver("192.0.2.7", 7, b"last")
            assert (await client.receive()).endswith(b"last")


# Ends.


async def test_association_ends_with_its_control_connection() -> None:
    async with direct_proxy(udp=True) as proxy:
        for how in (Tcp.close, Tcp.reset, Tcp.finish):
            control = await connect(port_of(proxy))
            await ask(control)
            await control.send(b"what is said here means nothing")
            assert proxy.proxy.associations == 1
            ending = how(control)
            if ending is not None:
                await ending
                assert await control.rest() == b""
            await over(proxy)
            control.close()


async def test_association_ends_with_its_channel() -> None:
    async with associated() as (proxy, control, _):
        proxy.channels[0].association.lost(NetworkError("the stream was reset"))
        assert await control.rest() == b""
        control.close()
        await over(proxy)


async def test_association_ends_at_the_idle_timeout() -> None:
    async with associated(udp_idle_time=0.3) as (proxy, control, port):
        loop = asyncio.get_running_loop()
        with Udp() as client:
            began = loop.time()
            while loop.time() < began + 0.4:
                client.send(NAMED + b"hello", port)
                await client.receive()
            assert proxy.proxy.associations == 1
        assert await control.rest() == b""
        control.close()
        await over(proxy)


async def test_association_ends_with_the_proxy() -> None:
    async with associated() as (proxy, control, _):
        await proxy.close()
        with pytest.raises(ConnectionResetError):
            await control.rest()
        await over(proxy)


# Failures.


@pytest.mark.parametrize(
    ("error", "code"),
    [(DestinationError(Outcome.NOT_ALLOWED), 2), (NetworkError("the server is gone"), 1)],
)
async def test_channel_that_fails_to_open(error: Exception, code: int) -> None:
    async with direct_proxy(udp=True) as proxy, await connect(port_of(proxy)) as control:
        proxy.error = error  # type: ignore[assignment]
        await control.send(request())
        assert await control.rest() == b"\5\0\5%c\0\1\0\0\0\0\0\0" % code
        await over(proxy)


async def test_associations_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_port, "MAX_ASSOCIATIONS", 1)
    async with associated() as (proxy, control, _):
        async with await connect(port_of(proxy)) as second:
            await second.send(request())
            assert (await second.rest())[2:4] == b"\5\1"
        control.close()
        await over(proxy)
        async with await connect(port_of(proxy)) as third:
            await ask(third)


async def test_associations_of_one_address_leave_room_for_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(proxy_port, "MAX_ASSOCIATIONS", 1)

    async def answer_to(proxy: DirectProxy, host: str) -> tuple[Tcp, bytes]:
        sock = socket.socket()
        sock.setblocking(False)
        sock.bind((host, 0))
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port_of(proxy)))
        control = Tcp(sock)
        await control.send(request())
        return control, (await control.exactly(12))[2:4]

    async with associated() as (proxy, _, _):
        proxy.proxy._max_associations = 2
        found = [await answer_to(proxy, f"127.0.0.{number}") for number in (1, 2, 3)]
        assert [answer for _, answer in found] == [b"\5\1", b"\5\0", b"\5\1"]
        assert proxy.proxy.associations == 2
        for control, _ in found:
            control.close()


async def test_ipv6_association() -> None:
    try:
        probe = Udp("::1")
    except OSError:
        pytest.skip("no IPv6 here")
    async with direct_proxy(udp=True, host="::1") as proxy:
        loop = asyncio.get_running_loop()
        sock = socket.socket(socket.AF_INET6)
        sock.setblocking(False)
        with probe as client:
            async with Tcp(sock) as control:
                await loop.sock_connect(sock, ("::1", port_of(proxy)))
                await control.send(request())
                answer = await control.exactly(2 + 22)
                assert answer[:22] == b"\5\0\5\0\0\4" + bytes(15) + b"\1"
                port = int.from_bytes(answer[22:], "big")
                client.send(NAMED + b"hello", port, "::1")
                assert await client.receive() == NAMED + b"HELLO"
        await over(proxy)
