"""WebSocket clients that are neither ours nor the original's, above all v2ray-plugin."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator

import pytest

from mtt.inbound import mux_cool_detector
from mtt.wire.mux_cool import END, KEEP, RESET, Decoder, data_frames, end, keep_alive, new
from tests.support.certs import Certs
from tests.support.gopeer import CLOSE_1000, Tls, WebSocket, smux_frame, ws_connect
from tests.support.stacks import server_context
from tests.support.tunnels import (
    Listening,
    Tcp,
    client_of,
    connect,
    echo,
    empty,
    eventually,
    listening,
    logged,
    maybe_reset,
    port_of,
    server_at,
    serving,
)

# What v2ray-plugin's client sends first with its mux, as recorded.
V2RAY_PLUGIN = bytes.fromhex("000c00010101010000017f000001000d") + b"hello world 0"


@pytest.fixture(params=["wss", "wss+mux"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Cool:
    """A client of Mux.Cool on a WebSocket."""

    def __init__(self, below: WebSocket) -> None:
        self.below = below
        self._decoder = Decoder()
        self._events: list[tuple[int, int, bytes]] = []

    async def event(self) -> tuple[int, int, bytes]:
        """The next event of the server's frames."""
        while not self._events:
            data = await self.below.read()
            assert data, "the session is over"
            self._events += [(*event[:2], bytes(event[2])) for event in self._decoder.feed(data)]
        return self._events.pop(0)


@contextlib.asynccontextmanager
async def plugin_at(mode: str, there: Listening, certs: Certs) -> AsyncIterator[Cool]:
    """A client with mux of a server in front of `there`."""
    async with server_at(mode, there.port, certs) as server:
        async with await ws_connect(port_of(server), certs, "") as below:
            yield Cool(below)
        await eventually(lambda: empty(server))


async def test_streams_of_v2ray_plugin_are_served(mode: str, certs: Certs) -> None:
    async with listening() as there, plugin_at(mode, there, certs) as client:
        await client.below.send(V2RAY_PLUGIN)
        first = await there.accept()
        assert await first.exactly(13) == b"hello world 0"
        await client.below.send(new(2) + keep_alive() + data_frames(2, b"two"))
        second = await there.accept()
        assert await second.exactly(3) == b"two"
        await second.send(b"to two")
        assert await client.event() == (KEEP, 2, b"to two")
        await first.send(b"to one")
        assert await client.event() == (KEEP, 1, b"to one")
        # How v2ray-plugin's client ends a stream; it expects the server's end.
        await client.below.send(end(2))
        assert await second.rest() == b""
        second.close()
        assert await client.event() == (END, 2, b"")
        # The destination ends; then the client does, too.
        first.close()
        assert await client.event() == (END, 1, b"")
        await client.below.send(end(1, error=True))


async def test_any_destination_leads_to_that_of_the_server(certs: Certs) -> None:
    async with listening() as there, plugin_at("wss", there, certs) as client:
        await client.below.send(V2RAY_PLUGIN)
        assert await (await there.accept()).exactly(5) == b"hello"
        await client.below.send(b"\0\x14\0\2" + ELSEWHERE[4:])
        assert await (await there.accept()).exactly(5) == b"hello"


async def test_failures_are_passed_on_in_both_directions(certs: Certs) -> None:
    async with listening() as there, plugin_at("wss", there, certs) as client:
        await client.below.send(V2RAY_PLUGIN)
        first = await there.accept()
        assert await first.exactly(13) == b"hello world 0"
        first.reset()
        assert await client.event() == (RESET, 1, b"")
        await client.below.send(new(2) + data_frames(2, b"two"))
        second = await there.accept()
        assert await second.exactly(3) == b"two"
        await client.below.send(end(2, error=True))
        with pytest.raises(ConnectionResetError):
            await second.read()


async def test_destination_that_refuses_ends_one_stream(refused_port: int, certs: Certs) -> None:
    async with (
        server_at("wss", refused_port, certs) as server,
        await ws_connect(port_of(server), certs, "") as below,
    ):
        client = Cool(below)
        await below.send(V2RAY_PLUGIN)
        assert await client.event() == (RESET, 1, b"")
        await below.send(new(2))
        assert await client.event() == (RESET, 2, b"")


async def test_end_of_no_stream_may_be_the_first_frame(certs: Certs) -> None:
    """v2ray-plugin sends it if the application closes at once, as shadowsocks-rust's check does."""
    async with serving(echo) as there, plugin_at("wss", there, certs) as client:
        await client.below.send(end(1, error=True))
        await client.below.send(new(2) + data_frames(2, b"hello"))
        assert await client.event() == (KEEP, 2, b"hello")


@pytest.mark.parametrize("resets", [False, True])
async def test_connection_of_clash_ends_with_its_only_stream(resets: bool, certs: Certs) -> None:
    """It numbers its stream 0, and takes no notice of END."""
    async with listening() as there, plugin_at("wss", there, certs) as client:
        await client.below.send(new(0) + data_frames(0, b"hello"))
        destination = await there.accept()
        assert await destination.exactly(5) == b"hello"
        await destination.send(b"answer")
        assert await client.event() == (KEEP, 0, b"answer")
        if resets:
            destination.reset()
            assert await client.event() == (RESET, 0, b"")
            with pytest.raises((ConnectionResetError, ssl.SSLEOFError)):
                await client.below.read()
        else:
            destination.close()
            assert await client.event() == (END, 0, b"")
            assert await client.below.read() == b""
            assert client.below.close_code == CLOSE_1000
            client.below.close()


async def test_any_stream_may_be_the_first(certs: Certs) -> None:
    """v2ray-plugin does not send the frames of streams that begin together in their order."""
    async with serving(echo) as there, plugin_at("wss", there, certs) as client:
        for number in (3, 1, 2):
            await client.below.send(new(number) + data_frames(number, b"hello"))
            assert await client.event() == (KEEP, number, b"hello")


ELSEWHERE = bytes.fromhex("001400010101010050020b") + b"example.com" + b"\0\5hello"


async def test_v2ray_recognises_other_destinations(certs: Certs) -> None:
    async with serving(echo) as there, plugin_at("v2ray", there, certs) as client:
        await client.below.send(ELSEWHERE)
        assert await client.event() == (KEEP, 1, b"hello")
    async with serving(echo) as there, server_at("wss", there.port, certs) as server:
        plain = await ws_connect(port_of(server), certs, "")
        await plain.check_echo(ELSEWHERE)
        plain.close()


async def test_v2ray_with_mux_skips_detection(certs: Certs) -> None:
    async with serving(echo) as there, plugin_at("v2ray+mux", there, certs) as client:
        await client.below.send(keep_alive())
        await client.below.send(new(1) + data_frames(1, b"hello"))
        assert await client.event() == (KEEP, 1, b"hello")


@pytest.mark.parametrize("mode", ["v2ray", "v2ray+mux"])
async def test_v2ray_serves_clients_of_the_original(mode: str, certs: Certs) -> None:
    async with serving(echo) as there, server_at(mode, there.port, certs) as server:
        plain = await ws_connect(port_of(server), certs, "smux_off")
        await plain.check_echo(V2RAY_PLUGIN)
        plain.close()
        mux = await ws_connect(port_of(server), certs, "smux_on")
        await mux.send(smux_frame(0, 3) + smux_frame(2, 3, b"hello"))
        assert await mux.exactly(13) == smux_frame(2, 3, b"hello")
        mux.close()


@pytest.mark.parametrize("client", ["v2ray", "v2ray+mux"])
@pytest.mark.parametrize("server", ["wss", "wss+mux", "v2ray", "v2ray+mux"])
async def test_own_client_marks_its_requests(client: str, server: str, certs: Certs) -> None:
    """So a destination that speaks first is heard at once, and each direction ends separately."""
    async with (
        listening() as there,
        server_at(server, there.port, certs) as running,
        client_of(client, port_of(running), certs) as ours,
        await connect(port_of(ours)) as application,
    ):
        destination = await there.accept()
        await destination.send(b"220 ready")
        assert await application.exactly(9) == b"220 ready"
        await application.send(b"all")
        await application.finish()
        assert await destination.rest() == b"all"
        await destination.send(b"answer")
        destination.close()
        assert await application.rest() == b"answer"


async def test_own_client_names_no_subprotocol(certs: Certs) -> None:
    """Xray takes one for early data."""
    heads: list[bytes] = []

    async def serve(connection: Tcp) -> None:
        tls = Tls(connection, server_context(certs), server_side=True)
        await tls.handshake()
        heads.append(await tls.until(b"\r\n\r\n"))

    async with (
        serving(serve) as there,
        client_of("v2ray", there.port, certs) as client,
        await connect(port_of(client)) as application,
    ):
        with pytest.raises(ConnectionResetError):
            await application.read()
    (head,) = heads
    assert b"Sec-WebSocket-Key: " in head
    assert b"protocol" not in head.lower()


@pytest.mark.parametrize("size", [1, 5, 13])
async def test_first_frame_may_come_in_pieces(size: int, certs: Certs) -> None:
    async with serving(echo) as there, plugin_at("wss", there, certs) as client:
        await client.below.send(V2RAY_PLUGIN[:size])
        await client.below.send(V2RAY_PLUGIN[size:])
        assert await client.event() == (KEEP, 1, b"hello world 0")


@pytest.mark.parametrize("first", [b"hello", b"\0\x0c\0\1\1\2", V2RAY_PLUGIN[:13] + b"\2"])
async def test_other_data_is_passed_on(first: bytes, certs: Certs) -> None:
    async with serving(echo) as there, server_at("wss", there.port, certs) as server:
        client = await ws_connect(port_of(server), certs, "")
        for data in (first, V2RAY_PLUGIN):
            await client.check_echo(data)
        client.close()


async def test_go_client_is_not_detected_as_v2ray_plugin(certs: Certs) -> None:
    async with serving(echo) as there, server_at("wss", there.port, certs) as server:
        client = await ws_connect(port_of(server), certs, "smux_off")
        await client.check_echo(V2RAY_PLUGIN)
        client.close()


async def test_smux_without_a_subprotocol_is_served_with_mux(certs: Certs) -> None:
    async with serving(echo) as there, server_at("wss+mux", there.port, certs) as server:
        client = await ws_connect(port_of(server), certs, "")
        await client.send(smux_frame(0, 3) + smux_frame(2, 3, b"hello"))
        assert await client.exactly(13) == smux_frame(2, 3, b"hello")
        client.close()


async def greeting(connection: Tcp) -> None:
    await connection.send(b"220 ready")
    await echo(connection)


async def test_destination_that_speaks_first_is_relayed_after_a_wait(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mux_cool_detector, "FIRST_TIME", 0.05)
    async with serving(greeting) as there, server_at("wss", there.port, certs) as server:
        client = await ws_connect(port_of(server), certs, "")
        assert await client.exactly(9) == b"220 ready"
        await client.check_echo(b"EHLO")
        client.close()


async def test_v2ray_plugin_that_is_late_is_named_in_the_log(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mux_cool_detector, "FIRST_TIME", 0.0)
    with logged() as lines:
        async with serving(greeting) as there, server_at("wss", there.port, certs) as server:
            for _ in range(3):
                client = await ws_connect(port_of(server), certs, "")
                assert await client.exactly(9) == b"220 ready"
                await client.check_echo(V2RAY_PLUGIN)
                client.close()
    warnings = [line for line in lines if "v2ray-plugin" in line]
    assert len(warnings) == 1
    assert "start the server with -v2ray -mux, or set mux=0" in warnings[0]


async def test_client_that_ends_without_data_is_a_plain_stream(certs: Certs) -> None:
    async with listening() as there, server_at("wss", there.port, certs) as server:
        client = await ws_connect(port_of(server), certs, "")
        await client.finish()
        connection = await there.accept()
        assert await connection.rest() == b""
        connection.close()
        client.close()
        await eventually(lambda: empty(server))


@pytest.mark.parametrize("vanishes", [True, False])
async def test_silent_client_leaves_nothing_behind(vanishes: bool, certs: Certs) -> None:
    async with listening() as there, server_at("wss", there.port, certs) as server:
        client = await ws_connect(port_of(server), certs, "")
        handshakes = server._frontend.handshakes
        await eventually(lambda: len(handshakes) == 1)
        if vanishes:
            client.below.reset()
            await eventually(lambda: empty(server))
        else:
            await server.close()
            with maybe_reset():
                assert await client.read() == b""
            client.close()
        await asyncio.sleep(0)
        assert there.count == 0


