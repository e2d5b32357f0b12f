"""Strangers at the door: whatever they send, the server and the next honest tunnel live."""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl

import pytest

from mtt.wire.http1 import MAX_HEAD
from tests.engine.siege import besieged, ended, send
from tests.support import anytlspeer
from tests.support.certs import Certs
from tests.support.contexts import client_hello, trusting_context
from tests.support.gopeer import (
    CLOSE,
    FIN,
    PSH,
    SYN,
    Tls,
    peer_connect,
    smux_frame,
    smux_read,
    tls_connect,
    ws_connect,
    ws_frame,
)
from tests.support.tunnels import (
    PASSWORD,
    SOON,
    Tcp,
    client_of,
    connect,
    empty,
    eventually,
    in_every_mode,
    in_mux_modes,
    listening,
    logged,
    port_of,
    server_at,
    serving,
)


@in_every_mode
async def test_random_bytes_instead_of_tls(mode: str, certs: Certs) -> None:
    rng = random.Random(20)
    async with besieged(mode, certs) as server:
        for _ in range(20):
            async with await connect(port_of(server)) as stranger:
                # Not 22, which begins a TLS record that might just be a long one.
                await send(stranger, bytes([rng.choice((0, 5, 23, 71, 255))]))
                await send(stranger, rng.randbytes(rng.randrange(5, 3000)))
                await stranger.finish()
                await ended(stranger)


@in_every_mode
async def test_random_bytes_inside_tls(mode: str, certs: Certs) -> None:
    """Above TLS only TLS mode itself takes anything: there it belongs to the destination."""
    rng = random.Random(21)
    async with besieged(mode, certs) as server:
        for _ in range(10):
            async with await tls_connect(port_of(server), certs) as stranger:
                await send(stranger, b"\2" + rng.randbytes(rng.randrange(20, 3000)))
                with contextlib.suppress(ConnectionError):
                    await stranger.finish()
                heard = await ended(stranger)
                if "wss" in mode:
                    assert heard.startswith(b"HTTP/1.1 400 Bad Request\r\n")


@pytest.mark.parametrize("mode", ["mux", "wss", "wss+mux"])
async def test_random_bytes_inside_the_framing_of_the_tunnel(mode: str, certs: Certs) -> None:
    rng = random.Random(22)
    async with besieged(mode, certs) as server:
        for _ in range(10):
            async with await peer_connect(mode, port_of(server), certs) as stranger:
                if mode == "wss":
                    garbage = bytes([rng.choice((0x83, 0xF2, 0x02))]) + rng.randbytes(100)
                    await send(stranger.below, garbage)  # type: ignore[attr-defined]
                else:
                    await send(stranger, b"\2" + rng.randbytes(rng.randrange(20, 3000)))
                await ended(stranger)


@in_every_mode
async def test_handshake_may_break_off_anywhere(mode: str, certs: Certs) -> None:
    data = client_hello(trusting_context(), certs.name)
    async with besieged(mode, certs) as server:
        for size in range(1, len(data), 40):
            async with await connect(port_of(server)) as stranger:
                await stranger.send(data[:size])
                await stranger.finish()
                await ended(stranger)


@pytest.mark.parametrize("mode", ["wss", "wss+mux"])
async def test_plain_http_on_the_tls_port_gets_the_answer_of_nginx(mode: str, certs: Certs) -> None:
    async with besieged(mode, certs) as server, await connect(port_of(server)) as browser:
        await browser.send(b"GET / HTTP/1.1\r\nHost: test.local\r\n\r\n")
        answer = await ended(browser)
        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\nServer: nginx\r\n")
        assert b"The plain HTTP request was sent to HTTPS port" in answer


@pytest.mark.parametrize("mode", ["wss", "wss+mux"])
async def test_tls_client_at_a_server_without_tls_gets_one_warning(mode: str, certs: Certs) -> None:
    with logged() as lines:
        async with besieged(mode, certs, **{"disable-tls": True}) as server:
            context = trusting_context(certs.ca)
            async with Tls(await connect(port_of(server)), context, name=certs.name) as stranger:
                with pytest.raises(ssl.SSLError):
                    await stranger.handshake()
    assert sum("WARNING" in line for line in lines) == 1


async def test_client_without_mux_at_a_mux_server_gets_one_warning(certs: Certs) -> None:
    with logged() as lines:
        async with (
            besieged("mux", certs) as server, client_of("tls", port_of(server), certs) as client,
            await connect(port_of(client)) as application,
        ):
            await application.send(b"SSH-2.0-secret\r\n")
            assert await ended(application) == b""
    warnings = [line for line in lines if "WARNING" in line]
    assert len(warnings) == 1, warnings
    assert "smux" in warnings[0]
    assert "SSH" not in warnings[0]


async def test_mux_client_at_a_server_without_mux_gets_no_tunnel(certs: Certs) -> None:
    async def web_server(connection: Tcp) -> None:
        await connection.read()
        await connection.send(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")

    async with (
        serving(web_server) as there,
        server_at("tls", there.port, certs) as server,
        client_of("mux", port_of(server), certs) as client,
        await connect(port_of(client)) as application,
    ):
        await application.send(b"hello")
        assert await ended(application) == b""
        await eventually(lambda: empty(server))


@pytest.mark.parametrize(
    "request_text",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\nCookie: " + b"x" * (MAX_HEAD + 10) + b"\r\n\r\n",
        b"G" * (2 * MAX_HEAD),
    ],
)
async def test_an_oversized_request_head(request_text: bytes, certs: Certs) -> None:
    async with (
        besieged("wss", certs) as server,
        await tls_connect(port_of(server), certs) as stranger,
    ):
        await send(stranger, request_text)
        assert (await ended(stranger)).startswith(b"HTTP/1.1 4")


async def test_a_frame_that_claims_to_be_huge(certs: Certs) -> None:
    """Payload is streamed: a length is only a number, and no memory."""
    async with besieged("wss", certs) as server:
        async with await ws_connect(port_of(server), certs, "smux_off") as stranger:
            head = b"\x82\xff" + (1 << 62).to_bytes(8, "big") + b"\0\0\0\0"
            await stranger.below.send(head + b"hello")
            assert await stranger.exactly(5) == b"hello"
        async with await ws_connect(port_of(server), certs, "smux_off") as stranger:
            await stranger.below.send(b"\x82\xff" + b"\xff" * 12)
            assert (await stranger.frame())[1][:2] == (1002).to_bytes(2, "big")
        async with await ws_connect(port_of(server), certs, "smux_off") as stranger:
            await stranger.below.send(ws_frame(CLOSE, b"x" * 126, client=True))
            assert (await stranger.frame())[1][:2] == (1002).to_bytes(2, "big")


@in_mux_modes
async def test_frames_at_and_beyond_the_limits_of_smux(mode: str, certs: Certs) -> None:
    async with besieged(mode, certs) as server:
        async with await peer_connect(mode, port_of(server), certs) as stranger:
            await stranger.send(smux_frame(SYN, 3) + smux_frame(PSH, 3, b"x" * 65535))
            received = 0
            while received < 65535:
                frame = await smux_read(stranger)
                assert frame is not None
                received += len(frame[2])
        for bad in (b"\1\0\5\0\3\0\0\0hello", b"\1\4\0\0\3\0\0\0", b"\2\0\0\0\3\0\0\0"):
            async with await peer_connect(mode, port_of(server), certs) as stranger:
                await send(stranger, smux_frame(SYN, 3) + bad)
                await ended(stranger)


@in_mux_modes
async def test_a_flood_of_streams_is_refused_beyond_the_limit(mode: str, certs: Certs) -> None:
    async with (
        besieged(mode, certs) as server,
        await peer_connect(mode, port_of(server), certs) as stranger,
    ):
        await stranger.send(b"".join(smux_frame(SYN, 3 + 2 * n) for n in range(300)))
        refused = [await smux_read(stranger) for _ in range(44)]
        assert refused == [(FIN, 3 + 2 * (256 + n), b"") for n in range(44)]


def opened_and_ended(mode: str, number: int) -> bytes:
    """A stream of a Go peer that is over when it begins."""
    if mode != "anytls":
        return smux_frame(SYN, number) + smux_frame(FIN, number)
    destination = anytlspeer.address("destination.test", 1)
    return b"".join(
        anytlspeer.frame(command, number, data)
        for command, data in (
            (anytlspeer.SYN, b""), (anytlspeer.PSH, destination), (anytlspeer.FIN, b""),
        )
    )  # fmt: skip


@pytest.mark.parametrize("mode", ["mux", "anytls"])
async def test_streams_that_end_at_once_are_not_dialled(mode: str, certs: Certs) -> None:
    async with (
        asyncio.timeout(SOON),
        listening() as there,
        server_at(mode, there.port, certs) as server,
        await tls_connect(port_of(server), certs) as stranger,
    ):
        if mode == "anytls":
            await stranger.send(anytlspeer.preamble(PASSWORD) + anytlspeer.settings())
        for begin in range(3, 4003, 400):
            await stranger.send(
                b"".join(opened_and_ended(mode, number) for number in range(begin, begin + 400))
            )
        await stranger.finish()
        await eventually(lambda: empty(server) and server.counters.streams >= 256)
        assert server.counters.tunnels == 0
        assert server.counters.dial_failures == 0
