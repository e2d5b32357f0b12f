"""Early data: the first bytes of a stream in the WebSocket request."""

from __future__ import annotations

import logging
import random

import pytest

from mtt.inbound import mux_cool_detector
from mtt.wire.early_data import MIN_SIZE, encode
from mtt.wire.mux_cool import KEEP, Decoder, data_frames, new
from tests.support.certs import Certs
from tests.support.gopeer import Tls, WebSocket, tls_connect, upgrade_request
from tests.support.goserver import go_server
from tests.support.stacks import server_context
from tests.support.tunnels import (
    Tcp,
    client_of,
    connect,
    echo,
    eventually,
    listening,
    logged,
    port_of,
    server_at,
    serving,
)

LONG = random.Random(1).randbytes(MIN_SIZE)


async def upgraded(port: int, certs: Certs, protocol: str) -> tuple[WebSocket, bytes]:
    """A client that sends `protocol`, and the head of the server's answer."""
    tls = await tls_connect(port, certs)
    await tls.send(upgrade_request(certs.name, "/", protocol))
    head = await tls.until(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ")
    return WebSocket(tls, client=True), head


@pytest.mark.parametrize(
    ("mode", "data"),
    [("wss", LONG), ("v2ray", LONG), ("v2ray", b"x"), ("v2ray", random.Random(2).randbytes(4096))],
)
async def test_server_takes_early_data(mode: str, data: bytes, certs: Certs) -> None:
    async with serving(echo) as there, server_at(mode, there.port, certs) as server:
        client, head = await upgraded(port_of(server), certs, encode(data))
        assert f"Sec-WebSocket-Protocol: {encode(data)}\r\n".encode() in head
        assert await client.exactly(len(data)) == data
        await client.check_echo(b"more")
        client.close()


@pytest.mark.parametrize("mode", ["wss", "wss+mux", "v2ray", "v2ray+mux"])
async def test_early_data_may_be_of_a_mux(mode: str, certs: Certs) -> None:
    async with serving(echo) as there, server_at(mode, there.port, certs) as server:
        client, _ = await upgraded(port_of(server), certs, encode(new(1) + data_frames(1, b"hi")))
        events = Decoder().feed(await client.read())
        assert [(*event[:2], bytes(event[2])) for event in events] == [(KEEP, 1, b"hi")]
        client.close()


@pytest.mark.parametrize("protocol", ["binary", "smux_off", f"{encode(LONG)}, binary"])
async def test_other_subprotocols_are_not_data(
    protocol: str, certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mux_cool_detector, "FIRST_TIME", 0.05)
    async with serving(echo) as there, server_at("wss", there.port, certs) as server:
        client, head = await upgraded(port_of(server), certs, protocol)
        assert (b"Sec-WebSocket-Protocol" in head) is (protocol == "smux_off")
        await client.check_echo(b"first")
        client.close()


@pytest.mark.parametrize("mode", ["wss", "v2ray"])
@pytest.mark.parametrize("size", [1, 100, 101, 5000])
async def test_own_ends(size: int, mode: str, certs: Certs) -> None:
    data = random.Random(size).randbytes(size)
    options = {"early-data": 100}
    with logged(logging.DEBUG) as lines:
        async with (
            serving(echo) as there,
            server_at(mode, there.port, certs) as server,
            client_of("v2ray", port_of(server), certs, **options) as client,
            await connect(port_of(client)) as application,
        ):
            await application.check_echo(data)
            await application.check_echo(b"more")
            await application.finish()
            assert await application.rest() == b""
            await eventually(lambda: not client.open_tunnels)
    counted = f"{size + 4} bytes up, {size + 4} bytes down"
    assert sum(counted in line for line in lines) == 2  # at both ends


async def test_destination_that_speaks_first_is_relayed(certs: Certs) -> None:
    async with (
        listening() as there,
        server_at("v2ray", there.port, certs) as server,
        client_of("v2ray", port_of(server), certs, **{"early-data": 100}) as client,
        await connect(port_of(client)) as application,
    ):
        destination = await there.accept()
        await destination.send(b"220 ready")
        assert await application.exactly(9) == b"220 ready"


async def test_data_leaves_with_the_request_and_nowhere_else(certs: Certs) -> None:
    """Not before, and once, though the server answers nothing."""
    heads: list[bytes] = []

    async def serve(connection: Tcp) -> None:
        tls = Tls(connection, server_context(certs), server_side=True)
        await tls.handshake()
        heads.append(await tls.until(b"\r\n\r\n"))

    async with (
        serving(serve) as there,
        client_of("v2ray", there.port, certs, **{"wss-path": "/p?a=b&ed=10"}) as client,
        await connect(port_of(client)) as application,
    ):
        await application.send(b"0123456789and more")
        with pytest.raises(ConnectionResetError):
            await application.read()
        assert there.count == 1
    (head,) = heads
    assert head.startswith(b"GET /p?a=b HTTP/1.1\r\n")
    assert f"Sec-WebSocket-Protocol: {encode(b'0123456789')}\r\n".encode() in head


async def test_server_without_early_data_is_an_error(certs: Certs) -> None:
    """It would lose the first bytes; sending them again could deliver them twice."""
    with logged() as lines:
        async with (
            serving(echo) as there,
            go_server("wss", there.port, certs) as go,
            client_of("v2ray", go.port, certs, **{"early-data": 100}) as client,
            await connect(port_of(client)) as application,
        ):
            await application.send(b"hello")
            with pytest.raises(ConnectionResetError):
                await application.read()
    assert any("the server did not confirm the early data" in line for line in lines)
