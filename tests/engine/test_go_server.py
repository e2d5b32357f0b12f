"""A Go server for our client: it follows every rule that such servers impose."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl

import pytest

from mtt.layers import mux
from mtt.layers.smux import SmuxSession
from mtt.options.tunnel import MAX_STREAM_LIMIT
from mtt.tunnels.relay import END_TIME, QUIET_TIME, Relay
from tests.support.certs import Certs
from tests.support.contexts import bare_context
from tests.support.gopeer import CLOSE_1000, Tls
from tests.support.goserver import MAX_STREAMS, go_server
from tests.support.tunnels import (
    GO_MODES,
    MEGABYTE,
    SOON,
    Tcp,
    cancel,
    check_works,
    client_of,
    clock_of_tunnels,
    connect,
    echo,
    eventually,
    in_every_go_mode,
    in_mux_modes,
    listening,
    maybe_reset,
    port_of,
    serving,
    settled,
)
from tests.support.vectors import vector


@in_every_go_mode
async def test_bytes_arrive_unchanged_both_ways(mode: str, certs: Certs) -> None:
    async def one(port: int) -> None:
        async with await connect(port) as application:
            _, received = await asyncio.gather(
                application.send(MEGABYTE), application.exactly(len(MEGABYTE))
            )
            assert received == MEGABYTE

    async with (
        serving(echo) as there,
        go_server(mode, there.port, certs) as go,
        client_of(mode, go.port, certs) as client,
    ):
        await asyncio.gather(*(one(port_of(client)) for _ in range(5)))
        assert all(tls.tls.selected_alpn_protocol() is None for tls in go.tls)


@pytest.mark.parametrize("name", ["b-wss-smux_off-echo", "d-wss-mux-two-streams"])
async def test_the_websocket_request_is_the_recorded_one(name: str, certs: Certs) -> None:
    def without_key(head: bytes) -> tuple[bytes, int]:
        return re.subn(rb"(?<=Sec-WebSocket-Key: )[A-Za-z0-9+/]{22}==(?=\r\n)", b"?", head)

    mode, path = ("wss", "/") if name.startswith("b-") else ("wss+mux", "/tunnel")
    async with (
        serving(echo) as there,
        go_server(mode, there.port, certs) as go,
        client_of(mode, go.port, certs, **{"wss-path": path}) as client,
    ):
        await check_works(port_of(client))
        assert go.tls[0].tls.server_side
        ours = without_key(go.heads[0])
        assert ours == without_key(bytes.fromhex(vector(name)[0]["hex"]))
        assert ours[1] == 1


@in_mux_modes
@pytest.mark.parametrize("slow", ["application", "destination"])
async def test_new_connections_avoid_a_session_that_is_stalled(
    mode: str, slow: str, certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Go has one budget for all streams of a session: one slow reader stops them all."""
    monkeypatch.setattr(mux, "STALL_TIME", 0.2)
    async with (
        listening() as there,
        go_server(mode, there.port, certs) as go,
        client_of(mode, go.port, certs) as client,
        await connect(port_of(client)) as application,
    ):
        await application.send(b"x")
        async with await there.accept() as destination:
            sender = destination if slow == "application" else application
            filling = asyncio.create_task(sender.send(bytes(64 * len(MEGABYTE))))
            (session,) = client._sessions()
            await eventually(lambda: isinstance(session, SmuxSession) and session.is_stalled)
            async with await connect(port_of(client)) as other:
                await other.send(b"hello")
                async with await there.accept() as end:
                    assert await end.exactly(5) == b"hello"
            assert len(go.sessions) == 2
            await cancel(filling)


async def _acknowledge(received: bytearray, connection: Tcp) -> None:
    while data := await connection.read(16384):
        received += data
        await connection.send(b".")


@pytest.mark.parametrize("how", ["finish", "close"])
async def test_an_acknowledged_upload_is_complete(how: str, certs: Certs) -> None:
    """Go closes both directions at the first end it sees, so that end has to come last."""
    await asyncio.gather(*(_acknowledged_upload(how, mode, certs) for mode in GO_MODES))


async def _acknowledged_upload(how: str, mode: str, certs: Certs) -> None:
    received = bytearray()

    async def read_answers(application: Tcp) -> int:
        answers = 0
        with maybe_reset():
            while data := await application.read():
                answers += len(data)
        return answers

    async def destination(connection: Tcp) -> None:
        await _acknowledge(received, connection)

    async with (
        serving(destination) as there,
        go_server(mode, there.port, certs) as go,
        client_of(mode, go.port, certs) as client,
        await connect(port_of(client)) as application,
    ):
        answers = asyncio.create_task(read_answers(application))
        await application.send(MEGABYTE)
        if how == "finish":
            await application.finish()
            assert await answers >= len(MEGABYTE) // 16384
        else:
            # An application closes when it has the answers to its last words.
            await eventually(lambda: len(received) == len(MEGABYTE))
            await cancel(answers)
            application.close()
        await eventually(lambda: len(received) == len(MEGABYTE))
        assert received == MEGABYTE, mode
        await eventually(lambda: not client.open_tunnels.open)


@in_every_go_mode
async def test_a_late_answer_to_a_finished_request_comes_through(
    mode: str, certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = clock_of_tunnels(monkeypatch)
    async with (
        listening() as there,
        go_server(mode, there.port, certs) as go,
        client_of(mode, go.port, certs) as client,
        await connect(port_of(client)) as application,
    ):
        await application.send(b"request")
        await application.finish()
        async with await there.accept() as destination:
            assert await destination.exactly(7) == b"request"
            for _ in range(4):
                await clock.passes(0.6 * QUIET_TIME)
                await destination.send(b"piece ")
                assert await application.exactly(6) == b"piece "
        assert await application.rest() == b""


@in_every_go_mode
async def test_a_download_is_complete_when_the_destination_closes(mode: str, certs: Certs) -> None:
    async def send(connection: Tcp) -> None:
        await connection.send(MEGABYTE)

    async with (
        serving(send) as there,
        go_server(mode, there.port, certs) as go,
        client_of(mode, go.port, certs) as client,
        await connect(port_of(client)) as application,
        asyncio.timeout(SOON),
    ):
        assert await application.rest() == MEGABYTE


async def test_end_in_two_steps_does_not_reset_application(certs: Certs) -> None:
    """The real program sends close_notify, and closes TCP a moment later."""
    context = bare_context(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certs.cert, certs.key)
    goes_on = asyncio.Event()

    async def serve(tcp: Tcp) -> None:
        tls = Tls(tcp, context, server_side=True)
        await tls.handshake()
        await tls.send(await tls.exactly(7))
        await tls.finish()
        await goes_on.wait()

    async with (
        serving(serve) as go,
        client_of("tls", go.port, certs) as client,
        await connect(port_of(client)) as application,
        asyncio.timeout(SOON),
    ):
        await application.send(b"request")
        assert await application.exactly(7) == b"request"
        (tunnel,) = client.open_tunnels.carriers
        assert isinstance(tunnel, Relay)
        assert await application.rest() == b""
        goes_on.set()
        await eventually(lambda: tunnel.reason)
        await settled()
        assert tunnel.reason == "done"
        assert application.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


async def test_the_end_of_a_websocket_tunnel_is_close_1000(
    certs: Certs, short_quiet: None
) -> None:
    async with (
        serving(echo) as there,
        go_server("wss", there.port, certs) as go,
        client_of("wss", go.port, certs) as client,
    ):
        await check_works(port_of(client))
        await eventually(lambda: go.websockets and go.websockets[0].close_code is not None)
        assert [websocket.close_code for websocket in go.websockets] == [CLOSE_1000]


@in_mux_modes
async def test_sessions_are_used_again_up_to_the_limit_of_streams(
    mode: str, certs: Certs
) -> None:
    async with (
        serving(echo) as there,
        go_server(mode, there.port, certs) as go,
        client_of(mode, go.port, certs, **{"mux-max-stream": 4}) as client,
    ):
        port = port_of(client)
        for _ in range(3):
            await check_works(port)
        assert len(go.tls) == 1
        together = [await connect(port) for _ in range(8)]
        for application in together:
            await application.check_echo()
        for application in together:
            application.close()
        # The three before may have held their places when the eight came.
        assert len(go.tls) in (2, 3)
        assert max(session.most for session in go.sessions) <= 4
        assert go.overruns == 0


@in_mux_modes
async def test_many_streams_never_exceed_what_a_go_server_bears(
    mode: str, certs: Certs, short_quiet: None
) -> None:
    """Long-lived streams and many short ones, at the highest setting: none is hurt."""

    async def short(port: int, times: int) -> None:
        for _ in range(times):
            await check_works(port)

    async with (
        serving(echo) as there,
        go_server(mode, there.port, certs) as go,
        client_of(mode, go.port, certs, **{"mux-max-stream": MAX_STREAM_LIMIT}) as client,
    ):
        port = port_of(client)
        long_lived = [await connect(port) for _ in range(13)]
        await asyncio.gather(*(short(port, 3) for _ in range(10)))
        for application in long_lived:
            await application.check_echo()
            application.close()
        # One less than it takes: a stream that has said FIN leaves its table a moment later.
        assert max(session.most for session in go.sessions) < MAX_STREAMS
        assert go.overruns == 0


@in_mux_modes
async def test_streams_never_ended_do_not_use_up_the_tunnel(
    mode: str, certs: Certs, refused_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Go server is silent about a destination it cannot reach, and keeps the stream."""
    async with (
        serving(echo) as there,
        go_server(mode, there.port, certs) as go,
        client_of(mode, go.port, certs, **{"mux-max-stream": 4}) as client,
    ):
        go.destination = refused_port
        clock = clock_of_tunnels(monkeypatch)
        port = port_of(client)
        for _ in range(6):
            application = await connect(port)
            await application.send(b"x")
            await application.finish()
            await eventually(lambda: client.open_tunnels.open)
            await settled()
            await clock.passes(2 * QUIET_TIME + END_TIME)
            with pytest.raises(ConnectionResetError):  # no reply is not an empty reply
                await application.rest()
            application.close()
        assert sum(len(session.streams) for session in go.sessions) == 6
        assert max(session.most for session in go.sessions) <= 4
        go.destination = there.port
        await check_works(port)


@in_every_go_mode
async def test_a_session_or_connection_that_dies_is_replaced(mode: str, certs: Certs) -> None:
    async with (
        serving(echo) as there,
        go_server(mode, there.port, certs) as go,
        client_of(mode, go.port, certs) as client,
    ):
        await check_works(port_of(client))
        async with await connect(port_of(client)) as application:
            await application.check_echo()
            for tls in go.tls:
                with contextlib.suppress(OSError):  # the first may have ended by itself
                    tls.sock.shutdown(socket.SHUT_RDWR)
            with maybe_reset():
                assert await application.rest() == b""
        await check_works(port_of(client))
