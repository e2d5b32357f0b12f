"""A Go client at our server: recorded exchanges replayed, and what else such clients do."""

from __future__ import annotations

import asyncio
import socket
import struct
from itertools import groupby

import pytest

from mtt.layers.linger import reset_on_close
from mtt.layers.mux_tunnel import MAX_STREAMS
from tests.support.certs import Certs
from tests.support.gopeer import (
    CLOSE,
    CLOSE_1000,
    FIN,
    PSH,
    SYN,
    WebSocket,
    masked,
    peer_connect,
    smux_frame,
    smux_read,
    tls_connect,
    upgrade_request,
    ws_connect,
)
from tests.support.tunnels import (
    MUX_MODES,
    SOON,
    Tcp,
    connect,
    echo,
    empty,
    eventually,
    in_every_go_mode,
    in_mux_modes,
    listening,
    maybe_reset,
    port_of,
    server_at,
    serving,
)
from tests.support.vectors import vector

VECTORS = {
    "a-tls-echo": "tls",
    "b-wss-smux_off-echo": "wss",
    "c-mux-two-streams": "mux",
    "d-wss-mux-two-streams": "wss+mux",
    "x-tls-destination-speaks-and-closes-first": "tls",
    "x-wss-destination-speaks-and-closes-first": "wss",
    "x-mux-destination-speaks-and-closes-first": "mux",
}


def decoded(mode: str, data: bytes) -> list[object]:
    """What the plaintext of one direction means, whatever the sizes of its frames.

    A WebSocket handshake stays as it is, byte for byte; data comes in runs.
    """
    said: list[object] = []
    if "wss" in mode:
        head, found, data = data.partition(b"\r\n\r\n")
        said.append(head + found)
        payload, closes = _messages(data)
    else:
        payload, closes = data, []
    if "mux" in mode:
        said += _smux(payload)
    elif payload:
        said.append(payload)
    return said + closes


def _messages(data: bytes) -> tuple[bytes, list[object]]:
    payload = b""
    closes: list[object] = []
    while data:
        size, at = data[1] & 0x7F, 2
        if size == 126:
            size, at = int.from_bytes(data[2:4], "big"), 4
        key = b"\0\0\0\0"
        if data[1] & 0x80:
            key, at = data[at : at + 4], at + 4
        body = masked(data[at : at + size], key)
        if data[0] == 0x82:
            payload += body
        else:
            closes.append((data[0], body))
        data = data[at + size :]
    return payload, closes


def _smux(payload: bytes) -> list[object]:
    frames = []
    while payload:
        version, command, size, stream = struct.unpack("<BBHI", payload[:8])
        assert version == 1
        frames.append((command, stream, payload[8 : 8 + size]))
        payload = payload[8 + size :]
    return [
        (*key, b"".join(frame[2] for frame in run))
        for key, run in groupby(frames, key=lambda frame: frame[:2])
    ]


async def speak_and_close_first(connection: Tcp) -> None:
    """The destination of the recordings in which it does that."""
    await connection.send(b"220 banner from destination\r\n")
    assert await connection.exactly(4) == b"quit"
    await connection.send(b"bye")


@pytest.mark.parametrize("name", VECTORS)
async def test_server_answers_as_recorded(name: str, certs: Certs, short_quiet: None) -> None:
    mode = VECTORS[name]
    events = vector(name)
    path = "/tunnel" if name.startswith("d-") else "/"
    destination = speak_and_close_first if name.startswith("x-") else echo
    heard = b""
    async with (
        serving(destination) as there,
        server_at(mode, there.port, certs, **{"wss-path": path}) as server,
        await tls_connect(port_of(server), certs) as go,
        asyncio.timeout(SOON),
    ):
        expected = b""
        for event in events:
            data = bytes.fromhex(event["hex"])
            if event["dir"] == "s2c" and data:
                expected += data
                # As long as our frames are as big as theirs, which they are for these sizes.
                if "not forwarded" not in event["note"]:
                    heard += await go.exactly(len(expected) - len(heard))
            elif event["dir"] == "c2s" and data:
                await go.send(data)
            elif event["dir"] == "c2s":
                await go.finish()
        heard += await go.rest()
    # The Go client does not wait for the FIN of its last stream: not all recordings have it.
    last = (FIN, 5, b"")
    ours, theirs = decoded(mode, heard), decoded(mode, expected)
    assert [it for it in ours if it != last] == [it for it in theirs if it != last]
    assert (last in ours) == (mode in MUX_MODES and not name.startswith("x-"))


@in_every_go_mode
async def test_upload_is_complete_after_immediate_close(mode: str, certs: Certs) -> None:
    """The Go client ends everything in one go: FIN, close 1000, close_notify, close."""
    upload = bytes(range(256)) * 2000
    async with listening() as there, server_at(mode, there.port, certs) as server:
        go = await peer_connect(mode, port_of(server), certs)
        if "mux" in mode:
            await go.send(smux_frame(SYN, 3))
        destination = await there.accept()
        await destination.send(b"go")
        assert await go.read()  # and the session tickets, or the close below becomes an RST

        async def send() -> None:
            for at in range(0, len(upload), 16384):
                piece = upload[at : at + 16384]
                await go.send(smux_frame(PSH, 3, piece) if "mux" in mode else piece)
            if "mux" in mode:
                await go.send(smux_frame(FIN, 3))
            await go.finish()
            go.close()

        _, received = await asyncio.gather(send(), destination.rest())
        assert received == upload
        destination.close()
        await eventually(lambda: empty(server))


@in_every_go_mode
async def test_vanished_client_resets_the_destination(mode: str, certs: Certs) -> None:
    """What the destination got so far must not look like the whole."""
    async with listening() as there, server_at(mode, there.port, certs) as server:
        go = await peer_connect(mode, port_of(server), certs)
        if "mux" in mode:
            await go.send(smux_frame(SYN, 3) + smux_frame(PSH, 3, b"half"))
        else:
            await go.send(b"half")
        destination = await there.accept()
        assert await destination.exactly(4) == b"half"
        reset_on_close(go.sock)
        go.sock.close()
        with pytest.raises(ConnectionResetError):
            await destination.rest()
        await eventually(lambda: empty(server))


@pytest.mark.parametrize("mode", ["tls", "wss"])
async def test_abrupt_fin_of_a_go_client_is_an_ordinary_end(
    mode: str, certs: Certs, short_linger: None
) -> None:
    async with listening() as there, server_at(mode, there.port, certs) as server:
        go = await peer_connect(mode, port_of(server), certs)
        await go.send(b"whole")
        destination = await there.accept()
        go.sock.shutdown(socket.SHUT_RDWR)
        assert await destination.rest() == b"whole"
        await eventually(lambda: empty(server))
        go.sock.close()


@in_every_go_mode
async def test_a_download_is_complete_when_the_destination_closes(
    mode: str, certs: Certs, short_quiet: None
) -> None:
    download = bytes(range(256)) * 2000

    async def send_and_close(connection: Tcp) -> None:
        await connection.send(download)

    async with (
        serving(send_and_close) as there,
        server_at(mode, there.port, certs) as server,
        await peer_connect(mode, port_of(server), certs) as go,
    ):
        if "mux" in mode:
            await go.send(smux_frame(SYN, 3))
            received = b""
            while (frame := await smux_read(go)) and frame[0] == PSH:
                received += frame[2]
            assert frame == (FIN, 3, b"")
        else:
            received = await go.rest()
        assert received == download
        if isinstance(go, WebSocket):
            assert "mux" in mode or go.close_code == CLOSE_1000


@pytest.mark.parametrize("payload", [CLOSE_1000, (1001).to_bytes(2, "big") + b"bye", b""])
async def test_a_close_frame_is_echoed_without_its_text(payload: bytes, certs: Certs) -> None:
    async with (
        serving(echo) as there,
        server_at("wss", there.port, certs) as server,
        await ws_connect(port_of(server), certs, "smux_off") as go,
    ):
        await go.send(payload, CLOSE)
        assert await go.frame() == (CLOSE, payload[:2])
        assert await go.below.rest() == b""


@in_every_go_mode
async def test_a_failed_dial_ends_the_tunnel_and_nothing_else(
    mode: str, certs: Certs, refused_port: int
) -> None:
    async with (
        server_at(mode, refused_port, certs) as server,
        await peer_connect(mode, port_of(server), certs) as go,
        asyncio.timeout(SOON),
    ):
        if "mux" in mode:
            for stream in (3, 5):
                await go.send(smux_frame(SYN, stream))
                assert await smux_read(go) == (FIN, stream, b"")
            await go.send(smux_frame(FIN, 3) + smux_frame(FIN, 5))
            await eventually(lambda: not server.open_tunnels.opening)
        else:
            with maybe_reset():
                assert await go.rest() == b""


@pytest.mark.parametrize(
    ("offered", "chosen", "mux"),
    [
        ("smux_on", "smux_on", True),
        ("smux_off", "smux_off", False),
        ("smux_off, smux_on", "smux_on", True),
        ("chat,smux_off", "smux_off", False),
        ("SMUX_ON", None, None),
        ("chat", None, None),
        ("", None, None),
    ],
)
@pytest.mark.parametrize("server_mux", [False, True])
async def test_subprotocol_overrides_the_servers_mux_flag(
    offered: str, chosen: str | None, mux: bool | None, server_mux: bool, certs: Certs
) -> None:
    mode = "wss+mux" if server_mux else "wss"
    async with (
        serving(echo) as there,
        server_at(mode, there.port, certs) as server,
        await tls_connect(port_of(server), certs) as tls,
        asyncio.timeout(SOON),
    ):
        await tls.send(upgrade_request(certs.name, protocol=offered))
        head = await tls.until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ")
        line = f"\r\nSec-WebSocket-Protocol: {chosen}\r\n".encode()
        assert line in head if chosen else b"Sec-WebSocket-Protocol" not in head
        go = WebSocket(tls, client=True)
        if server_mux if mux is None else mux:
            await go.send(smux_frame(SYN, 3) + smux_frame(PSH, 3, b"hello"))
            assert await smux_read(go) == (PSH, 3, b"hello")
        else:
            await go.check_echo(b"hello")


@in_mux_modes
async def test_a_burst_of_17_streams_is_served(mode: str, certs: Certs) -> None:
    streams = range(3, 3 + 2 * 17, 2)
    async with (
        serving(echo) as there,
        server_at(mode, there.port, certs) as server,
        await peer_connect(mode, port_of(server), certs) as go,
        asyncio.timeout(SOON),
    ):
        await go.send(b"".join(smux_frame(SYN, stream) for stream in streams))
        await go.send(b"".join(smux_frame(PSH, stream, b"%d" % stream) for stream in streams))
        answers = {await smux_read(go) for _ in streams}
        assert answers == {(PSH, stream, b"%d" % stream) for stream in streams}


@in_mux_modes
async def test_only_streams_beyond_the_limit_are_refused(mode: str, certs: Certs) -> None:
    streams = range(3, 3 + 2 * (MAX_STREAMS + 5), 2)
    last, late = streams[MAX_STREAMS - 1], streams[-1] + 2
    async with (
        serving(echo) as there,
        server_at(mode, there.port, certs) as server,
        await peer_connect(mode, port_of(server), certs) as go,
        asyncio.timeout(SOON),
    ):
        await go.send(b"".join(smux_frame(SYN, stream) for stream in streams))
        refused = [await smux_read(go) for _ in range(5)]
        assert refused == [(FIN, stream, b"") for stream in streams[MAX_STREAMS:]]
        await go.send(smux_frame(PSH, 3, b"first") + smux_frame(PSH, last, b"last"))
        answers = {await smux_read(go), await smux_read(go)}
        assert answers == {(PSH, 3, b"first"), (PSH, last, b"last")}
        # One ends, and there is room for another.
        await go.send(smux_frame(FIN, 3))
        assert await smux_read(go) == (FIN, 3, b"")
        await go.send(smux_frame(SYN, late) + smux_frame(PSH, late, b"late"))
        assert await smux_read(go) == (PSH, late, b"late")
    assert MAX_STREAMS >= 16  # what Go clients may open


@in_mux_modes
async def test_any_stream_id_is_served_and_unknown_data_dropped(mode: str, certs: Certs) -> None:
    async with (
        serving(echo) as there,
        server_at(mode, there.port, certs) as server,
        await peer_connect(mode, port_of(server), certs) as go,
        asyncio.timeout(SOON),
    ):
        for stream in (0, 4, 0xFFFFFFFF):
            await go.send(smux_frame(PSH, 999, b"lost") + smux_frame(FIN, 999))
            await go.send(smux_frame(SYN, stream) + smux_frame(SYN, stream))
            await go.send(smux_frame(PSH, stream) + smux_frame(PSH, stream, b"x"))
            assert await smux_read(go) == (PSH, stream, b"x")
            await go.send(smux_frame(FIN, stream))
            assert await smux_read(go) == (FIN, stream, b"")
        assert there.count == 3


async def test_a_front_proxy_may_terminate_tls(certs: Certs) -> None:
    async with (
        serving(echo) as there,
        server_at("wss", there.port, certs, **{"disable-tls": True}) as server,
        await connect(port_of(server)) as proxy,
        asyncio.timeout(SOON),
    ):
        await proxy.send(upgrade_request("proxied.test"))
        head = await proxy.until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ")
        go = WebSocket(proxy, client=True)
        await go.check_echo(b"hello")
