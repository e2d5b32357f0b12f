"""Strangers at the door: whatever they send, the server and the next honest tunnel live."""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mtt.http import entrance
from mtt.http.limits import VISITORS
from mtt.http.server import HttpServer
from mtt.layers.tls import TlsLayer
from mtt.log import FAILURE_BURST
from mtt.server import Server
from mtt.wire.http1 import MAX_HEAD
from tests.support import anytlspeer
from tests.support.certs import Certs
from tests.support.contexts import trusting_context
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
    upgrade_request,
    ws_connect,
    ws_frame,
)
from tests.support.tunnels import (
    MODES,
    PASSWORD,
    SOON,
    Tcp,
    check_works,
    client_of,
    connect,
    echo,
    empty,
    eventually,
    in_every_mode,
    listening,
    logged,
    maybe_reset,
    port_of,
    server_at,
    serving,
)


@contextlib.asynccontextmanager
async def besieged(mode: str, certs: Certs, **options: Any) -> AsyncIterator[Server]:
    """A server for strangers; afterwards an honest client must be served and nothing be left."""
    async with serving(echo) as there, server_at(mode, there.port, certs, **options) as server:
        with logged() as lines:
            yield server
            if not options:
                async with client_of(mode, port_of(server), certs) as client:
                    await check_works(port_of(client))
            await eventually(lambda: empty(server))
        assert not [line for line in lines if "internal error" in line]


async def ended(stranger: Tcp) -> bytes:
    """What the server still says before it closes, which it must do soon."""
    heard = bytearray()
    async with asyncio.timeout(SOON):
        with maybe_reset(), contextlib.suppress(ssl.SSLError):
            while data := await stranger.read():
                heard += data
    return bytes(heard)


async def send(stranger: Tcp, data: bytes) -> None:
    """Send to a server that may have had enough already."""
    with contextlib.suppress(ConnectionError):
        await stranger.send(data)


def shorten(monkeypatch: pytest.MonkeyPatch, cls: type, name: str, time: object) -> None:
    """Change the default of a time that `cls` takes as a keyword."""
    defaults: dict[str, Any] = cls.__init__.__kwdefaults__  # type: ignore[misc]
    assert name in defaults
    monkeypatch.setitem(defaults, name, time)


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
async def test_random_bytes_inside_the_tunnels_own_framing(mode: str, certs: Certs) -> None:
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
async def test_a_handshake_that_breaks_off_anywhere(mode: str, certs: Certs) -> None:
    hello = ssl.MemoryBIO()
    client = trusting_context().wrap_bio(ssl.MemoryBIO(), hello, server_hostname=certs.name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    data = hello.read()
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
async def test_a_tls_client_on_a_server_without_tls(mode: str, certs: Certs) -> None:
    with logged() as lines:
        async with besieged(mode, certs, **{"disable-tls": True}) as server:
            context = trusting_context(certs.ca)
            async with Tls(await connect(port_of(server)), context, name=certs.name) as stranger:
                with pytest.raises(ssl.SSLError):
                    await stranger.handshake()
    assert sum("WARNING" in line for line in lines) == 1


async def test_a_client_without_mux_on_a_mux_server(certs: Certs) -> None:
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


async def test_a_mux_client_on_a_server_without_mux(certs: Certs) -> None:
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


@pytest.mark.parametrize("mode", ["mux", "wss+mux"])
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


@pytest.mark.parametrize("mode", ["mux", "wss+mux"])
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


async def test_failures_that_a_peer_repeats_do_not_flood_the_log(certs: Certs) -> None:
    async with listening() as there:
        nowhere = there.port
    count = 2 * FAILURE_BURST
    async with (
        asyncio.timeout(SOON),
        server_at("mux", nowhere, certs) as server,
        await tls_connect(port_of(server), certs) as stranger,
    ):
        with logged() as lines:
            await stranger.send(b"".join(smux_frame(SYN, 3 + 2 * n) for n in range(count)))
            await eventually(lambda: server.counters.dial_failures == count)
            assert len([line for line in lines if "connect" in line]) == FAILURE_BURST
            for _ in range(count):
                async with await tls_connect(port_of(server), certs) as other:
                    await other.send(b"no frame of mux")
                    await ended(other)
            broken = [line for line in lines if "smux" in line]
            assert len(broken) == FAILURE_BURST  # they have a count of their own


@pytest.mark.parametrize("mode", MODES)
async def test_who_never_ends_his_handshake_is_cut(
    mode: str, certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten(monkeypatch, TlsLayer, "handshake_time", 0.3)
    monkeypatch.setattr(entrance, "HANDSHAKE_TIME", 0.3)
    async with (
        besieged(mode, certs) as server,
        await connect(port_of(server)) as silent,
        await connect(port_of(server)) as slow,
    ):
        await slow.send(b"\x16\x03\x01\x02\x00\x01")
        assert await ended(silent) == b""
        await ended(slow)


async def test_who_sends_a_request_head_byte_by_byte_is_cut(
    certs: Certs, short_linger: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten(monkeypatch, HttpServer, "limits", VISITORS._replace(head=0.4))
    with logged() as lines:
        async with (
            besieged("wss", certs) as server,
            await tls_connect(port_of(server), certs) as slow,
        ):
            with contextlib.suppress(ConnectionError):
                async with asyncio.timeout(SOON):
                    for byte in upgrade_request(certs.name) * 100:
                        await slow.send(bytes([byte]))
                        await asyncio.sleep(0.02)
            assert await ended(slow) == b""
    assert sum("no complete HTTP request within 0.4 s" in line for line in lines) == 1


@in_every_mode
@pytest.mark.parametrize("how", ["close", "reset"])
async def test_probes_that_connect_and_close_leave_no_noise(
    how: str, mode: str, certs: Certs
) -> None:
    with logged() as lines:
        async with besieged(mode, certs) as server:
            for _ in range(10):
                probe = await connect(port_of(server))
                probe.close() if how == "close" else probe.reset()
            await eventually(lambda: empty(server))
    assert not [line for line in lines if "INFO" not in line]


@in_every_mode
async def test_probes_of_a_plugin_do_not_reach_the_server(mode: str, certs: Certs) -> None:
    """Shadowsocks finds out by connecting and closing whether its plugin is up."""
    with logged() as lines:
        async with (
            serving(echo) as there,
            server_at(mode, there.port, certs) as server,
            serving(echo) as decoy,
            client_of(mode, decoy.port, certs, plugin=True) as client,
        ):
            for _ in range(5):
                (await connect(port_of(client))).close()
            async with await connect(port_of(client)) as silent:
                await client.close()
                with maybe_reset():
                    assert await silent.rest() == b""
            assert decoy.count == 0
            async with client_of(mode, port_of(server), certs, plugin=True) as client:
                await check_works(port_of(client))
    assert not [line for line in lines if "INFO" not in line]


@in_every_mode
async def test_a_failed_connection_is_one_line_that_says_who_and_why(
    mode: str, certs: Certs
) -> None:
    with logged() as lines:
        async with serving(echo) as there, server_at(mode, there.port, certs) as server:
            strange = dict(certs.__dict__, ca=certs.other_ca)
            async with (
                client_of(mode, port_of(server), Certs(**strange)) as client,
                await connect(port_of(client)) as application,
            ):
                await application.send(b"SECRET")
                with maybe_reset():
                    assert await application.rest() == b""
            await eventually(lambda: sum("WARNING" in line for line in lines) == 2)
    by_server, by_client = sorted(
        (line for line in lines if "WARNING" in line), key=lambda line: "not accepted" in line
    )
    assert "alert unknown ca" in by_server
    assert f"127.0.0.1:{port_of(server)}: " in by_client
    assert "certificate" in by_client
    assert not any("SECRET" in line for line in lines)
