"""What went wrong with the original, by behaviour: none of it happens here.

What needs more than one test is elsewhere: lost tails and half-close in test_ends and
test_go_server, the idle timeout in test_ends, limits of streams in test_go_client and
test_go_server, failed dials in test_tunnel and test_go_client, slow handshakes in test_abuse,
plugin options, exit codes and the multi-user server in tests of their own.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from mtt.errors import StartError
from mtt.layers import keepalive
from mtt.options.tunnel import server_options
from mtt.server import Server
from tests.net.fake_dns import fake_dns, holding
from tests.support.certs import Certs
from tests.support.gopeer import (
    CLOSE,
    CLOSE_1000,
    FIN,
    PSH,
    SYN,
    peer_connect,
    smux_frame,
    smux_read,
    tls_connect,
    ws_connect,
)
from tests.support.goserver import go_server
from tests.support.tunnels import (
    SMALL,
    SOON,
    Tcp,
    cancel,
    check_works,
    client_of,
    clock_of_tunnels,
    connect,
    echo,
    empty,
    eventually,
    fill,
    in_every_mode,
    in_mux_modes,
    listening,
    logged,
    maybe_reset,
    port_of,
    server_at,
    serving,
    tunnel,
)


async def flood(connection: Tcp) -> None:
    """A destination that sends without end."""
    while True:
        await connection.send(bytes(65536))


async def test_close_frame_in_stalled_download_does_not_stop_server(
    certs: Certs, small_buffers: None, short_linger: None
) -> None:
    with logged() as lines:
        async with serving(flood) as there, server_at("wss", there.port, certs) as server:
            async with await ws_connect(port_of(server), certs, "smux_off") as go:
                await eventually(lambda: _stalled(server))
                await go.send(CLOSE_1000, CLOSE)
                while (await go.frame())[0] != CLOSE:
                    pass
            for _ in range(5):
                async with await ws_connect(port_of(server), certs, "smux_off") as go:
                    await eventually(lambda: _stalled(server))
                    go.sock.shutdown(1)
            await eventually(lambda: not server.open_tunnels.open)
            async with await ws_connect(port_of(server), certs, "smux_off") as go:
                assert await go.exactly(1000) == bytes(1000)
    assert not [line for line in lines if "ERROR" in line]


def _stalled(server: Server) -> bool:
    return any(not relay._far.transport.is_reading() for relay in server.open_tunnels._carriers)


@in_every_mode
async def test_a_one_way_download_outlives_the_idle_timeout(
    mode: str, certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = clock_of_tunnels(monkeypatch)
    async with (
        listening() as there,
        tunnel(mode, there.port, certs, timeout=4.0) as port,
        await connect(port) as application,
    ):
        destination = await there.accept()
        for _ in range(12):
            await destination.send(b".")
            assert await application.exactly(1) == b"."
            await clock.passes(1.0)


@in_mux_modes
async def test_a_stalled_stream_does_not_get_the_session_killed(
    mode: str, certs: Certs, small_buffers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer that does not read, as its buffer is full, sees no signs of life, either."""
    clock = clock_of_tunnels(monkeypatch)
    async with (
        listening(buffer=SMALL) as there,
        go_server(mode, there.port, certs) as go,
        client_of(mode, go.port, certs) as client,
        await connect(port_of(client), buffer=SMALL) as application,
    ):
        far = await there.accept()
        sent = await fill(far)
        await clock.passes(3 * keepalive.DEAD_TIME)
        assert await application.exactly(len(sent)) == sent


@in_mux_modes
async def test_data_and_end_that_come_together_are_delivered_in_order(
    mode: str, certs: Certs
) -> None:
    """Also when the destination is only just being dialled, so that both have to wait."""
    data = os.urandom(100_000)
    pieces = [data[at : at + 5000] for at in range(0, len(data), 5000)]
    async with (
        listening() as there,
        server_at(mode, there.port, certs) as server,
        await peer_connect(mode, port_of(server), certs) as go,
    ):
        for stream in range(3, 23, 2):
            frames = b"".join(smux_frame(PSH, stream, piece) for piece in pieces)
            await go.send(smux_frame(SYN, stream) + frames + smux_frame(FIN, stream))
            async with await there.accept() as destination:
                assert await destination.rest() == data
            assert await smux_read(go) == (FIN, stream, b"")


@in_mux_modes
async def test_bytes_never_reach_another_stream(mode: str, certs: Certs) -> None:
    """Even while neighbours are cut in the middle of their writes."""

    async def flow(port: int, value: int) -> None:
        async with await connect(port) as application:
            sending = asyncio.create_task(application.send(bytes([value]) * 400_000))
            received = await application.exactly(50_000 if value % 2 else 400_000)
            assert set(received) == {value}
            await cancel(sending)
            if value % 2:
                application.reset()

    async with serving(echo) as there, tunnel(mode, there.port, certs) as port:
        await asyncio.gather(*(flow(port, value) for value in range(12)))


async def test_bind_unix_never_removes_what_is_not_a_socket(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("do not delete")
    given = {"bind-unix": str(tmp_path / "precious"), "d": "127.0.0.1:9"}
    server = Server(server_options(given))
    with pytest.raises(StartError, match="not a socket"):
        await server.start()
    await server.close()
    assert (tmp_path / "precious" / "file").read_text() == "do not delete"


async def test_the_fallback_dns_server_is_asked_and_believed(certs: Certs) -> None:
    async with (
        serving(echo) as there,
        server_at("tls", there.port, certs) as server,
        fake_dns(holding("127.0.0.1")) as dns,
        client_of(
            "tls", 1, certs,
            **{
                "s": f"server.test:{port_of(server)}",
                "fallback-dns": f"{dns.address[0]}:{dns.address[1]}",
            },
        ) as client,
    ):  # fmt: skip
        await check_works(port_of(client))
        assert {name for name, _, _ in dns.seen} == {"server.test"}


async def test_fast_open_does_not_keep_a_destination_from_speaking_first(certs: Certs) -> None:
    options = {"fast-open": True}
    async with (
        listening() as there,
        tunnel("tls", there.port, certs, **options) as port,
        await connect(port) as application,
        asyncio.timeout(SOON),
    ):
        await (await there.accept()).send(b"220 hello")
        assert await application.exactly(9) == b"220 hello"


@pytest.mark.parametrize("path", ["tunnel", "/tunnel"])
async def test_a_websocket_path_works_with_and_without_its_slash(path: str, certs: Certs) -> None:
    async with (
        serving(echo) as there,
        server_at("wss", there.port, certs, **{"wss-path": path}) as server,
        client_of("wss", port_of(server), certs, **{"wss-path": "tunnel"}) as client,
    ):
        await check_works(port_of(client))


@in_mux_modes
async def test_a_session_that_broke_the_protocol_is_closed_at_once(mode: str, certs: Certs) -> None:
    async with (
        serving(echo) as there,
        server_at(mode, there.port, certs) as server,
        await peer_connect(mode, port_of(server), certs) as go,
    ):
        await go.send(smux_frame(SYN, 3) + smux_frame(PSH, 3, b"x"))
        assert await smux_read(go) == (PSH, 3, b"x")
        await go.send(b"\7" * 8)
        async with asyncio.timeout(SOON):
            with maybe_reset():
                while await smux_read(go):
                    pass
        await eventually(lambda: empty(server))


async def test_alpn_is_offered_like_a_browser_and_never_needed(certs: Certs) -> None:
    """A server that picks h2 makes WebSocket impossible: with -wss only http/1.1 is agreed on."""
    for mode, expected in (("wss", "http/1.1"), ("tls", "h2")):
        async with serving(echo) as there, server_at(mode, there.port, certs) as server:
            offered = await tls_connect(port_of(server), certs, alpn=["h2", "http/1.1"])
            silent = await tls_connect(port_of(server), certs)
            async with offered, silent:
                assert offered.tls.selected_alpn_protocol() == expected
                assert silent.tls.selected_alpn_protocol() is None
