"""The server's streams: bytes there and back, ends, limits."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import pytest

from anytls import server
from tests.anytls.serving import empty, know, server_for
from tests.anytls.streams import HERE, check_echo, check_session, refused
from tests.support.anytlspeer import (
    ALERT,
    FIN,
    MD5,
    PSH,
    SERVER_SETTINGS,
    SYN,
    SYNACK,
    UPDATE,
    AnyTlsPeer,
    address,
    frame,
    peer_connect,
    preamble,
    settings,
)
from tests.support.certs import Certs
from tests.support.gopeer import tls_connect
from tests.support.metrics import parse
from tests.support.tunnels import SOON, Tcp, connect, echo, eventually, logged, port_of, serving


async def greet(connection: Tcp) -> None:
    """A destination that speaks first, and ends when it has heard something."""
    await connection.send(b"220 welcome\r\n")
    await connection.read()


async def test_data_sent_with_the_destination_is_delivered(certs: Certs) -> None:
    async with asyncio.timeout(SOON), serving(echo) as there, server_for(certs) as server:
        async with await peer_connect(port_of(server), certs) as peer:
            await peer.open(1, HERE, there.port, b"first ")
            await peer.send(frame(PSH, 1, b"second"))
            assert await peer.frame() == (SYNACK, 1, b"")
            assert await peer.data(1, 12) == b"first second"
        await eventually(lambda: empty(server))


async def test_destination_byte_by_byte_may_speak_first(certs: Certs) -> None:
    async with asyncio.timeout(SOON), serving(greet) as there, server_for(certs) as server:
        know(server, {"greeter.test": [HERE]})
        async with await peer_connect(port_of(server), certs) as peer:
            await peer.send(frame(SYN, 1))
            for byte in address("greeter.test", there.port):
                await peer.send(frame(PSH, 1, bytes((byte,))))
                await asyncio.sleep(0)
            assert await peer.frame() == (SYNACK, 1, b"")
            assert await peer.data(1, 13) == b"220 welcome\r\n"
            await peer.send(frame(PSH, 1, b"QUIT"))
            assert await peer.frame() == (FIN, 1, b"")
            await check_session(peer)


async def test_end_arrives_after_megabytes_both_ways(certs: Certs) -> None:
    sent = os.urandom(3_000_000)
    got: list[bytes] = []

    async def swallow(connection: Tcp) -> None:
        got.append(await connection.exactly(len(sent)))
        await connection.send(got[0][::-1])

    async with asyncio.timeout(20), serving(swallow) as there, server_for(certs) as server:
        async with await peer_connect(port_of(server), certs) as peer:
            await peer.open(1, HERE, there.port)
            assert await peer.frame() == (SYNACK, 1, b"")
            for at in range(0, len(sent), 32768):
                await peer.send(frame(PSH, 1, sent[at : at + 32768]))
            assert await peer.data(1, len(sent)) == sent[::-1]
            assert got == [sent]
            assert await peer.frame() == (FIN, 1, b"")
        await eventually(lambda: empty(server))
        page = parse(server.metrics_page())
        for way in ("up", "down"):
            name = f'mtt_anytls_user_transferred_bytes_total{{user="default",direction="{way}"}}'
            assert page[name] == len(sent)
            assert page[f'mtt_transferred_bytes_total{{direction="{way}"}}'] == len(sent)


async def test_streams_of_one_session_are_independent(certs: Certs) -> None:
    async with asyncio.timeout(SOON), serving(echo) as there, server_for(certs) as server:
        async with await peer_connect(port_of(server), certs) as peer:
            for stream in range(20):
                await peer.open(stream, HERE, there.port, b"%03d" % stream)
            heard: dict[int, list[tuple[int, bytes]]] = {}
            while sum(map(len, heard.values())) < 40:
                command, stream, data = await peer.frame()
                heard.setdefault(stream, []).append((command, data))
            assert heard == {n: [(SYNACK, b""), (PSH, b"%03d" % n)] for n in range(20)}
        await eventually(lambda: empty(server))


async def test_version_1_client_gets_no_acknowledgements(certs: Certs) -> None:
    async with (
        asyncio.timeout(SOON),
        serving(echo) as there,
        server_for(certs) as server,
        await peer_connect(port_of(server), certs, version=1) as peer,
    ):
        await peer.open(1, HERE, there.port, b"hello")
        assert await peer.data(1, 5) == b"hello"
        await peer.open(2, HERE, 1)
        assert await peer.frame() == (FIN, 2, b"")


async def test_a_stream_before_the_settings_is_refused_with_an_alert(certs: Certs) -> None:
    async with asyncio.timeout(SOON), server_for(certs) as server:
        async with AnyTlsPeer(await tls_connect(port_of(server), certs)) as peer:
            await peer.send(preamble(), frame(SYN, 1))
            assert await peer.frame() == (ALERT, 0, b"client did not send its settings")
            with pytest.raises(EOFError):
                await peer.frame()
        await eventually(lambda: empty(server))


async def test_padding_scheme_is_sent_to_clients_with_another(certs: Certs, tmp_path: Path) -> None:
    scheme = b"stop=2\n0=40-40\n1=100-100\n"
    path = tmp_path / "scheme"
    path.write_bytes(scheme)
    async with asyncio.timeout(SOON), server_for(certs, **{"padding-scheme": str(path)}) as server:
        for md5, updates in ((MD5, [(UPDATE, 0, scheme)]), ("", [(UPDATE, 0, scheme)])):
            async with AnyTlsPeer(await tls_connect(port_of(server), certs)) as peer:
                await peer.send(preamble(), settings(md5=md5))
                heard = [await peer.frame() for _ in range(len(updates) + 1)]
                assert heard == [*updates, (SERVER_SETTINGS, 0, b"v=2")]


async def test_max_conns_refuses_streams_of_existing_sessions(certs: Certs) -> None:
    options = {"max-conns": 1}  # the session counts with its stream, or when it has none
    async with (
        asyncio.timeout(SOON),
        serving(echo) as there,
        server_for(certs, **options) as server,
        await peer_connect(port_of(server), certs) as peer,
    ):
        await check_echo(peer, 1, there.port)
        assert await refused(peer, 2, HERE, there.port) == "the connection failed"
        with pytest.raises(ConnectionError):
            await tls_connect(port_of(server), certs)
        await peer.send(frame(FIN, 1))
        await eventually(lambda: not server.tunnels)
        await check_echo(peer, 3, there.port)


async def test_closing_cuts_everything_and_draining_waits(certs: Certs) -> None:
    async with asyncio.timeout(SOON), serving(echo) as there:
        async with server_for(certs) as server, await peer_connect(port_of(server), certs) as peer:
            await check_echo(peer, 1, there.port)
            draining = asyncio.create_task(server.drain())
            await asyncio.sleep(0.2)
            assert not draining.done()
            with pytest.raises(ConnectionError):
                await connect(port_of(server))
            await peer.send(frame(FIN, 1))
            await draining
            with pytest.raises(EOFError):
                await peer.frame()
        async with server_for(certs) as server:
            peer = await peer_connect(port_of(server), certs)
            await check_echo(peer, 1, there.port)
        with pytest.raises(ConnectionError):
            await peer.frame()
        peer.tls.close()


async def test_random_frames_leave_nothing_behind(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames with anything in them, then just anything."""
    monkeypatch.setattr(server, "ANSWER_TIME", 0.01)
    rng = random.Random(6)
    async with asyncio.timeout(25), serving(echo) as there, server_for(certs) as ours:
        know(ours, {"echo.test": [HERE]})
        hosts = (HERE, "echo.test", "no.test", "sp.v2.udp-over-tcp.arpa", "sp.udp-over-tcp.arpa")

        def piece() -> bytes:
            match rng.randrange(4):
                case 0:
                    return address(rng.choice(hosts), rng.choice((there.port, 0, 1)))
                case 1:
                    return rng.randbytes(rng.randrange(40))
                case 2:
                    return bytes(rng.randrange(3000))
                case _:
                    return b""

        with logged() as lines:
            for attempt in range(60):
                async with await peer_connect(port_of(ours), certs) as peer:
                    said = b"".join(
                        frame(rng.choice((SYN, PSH, FIN, rng.randrange(256))), rng.randrange(4),
                              piece())
                        for _ in range(rng.randrange(60))
                    )  # fmt: skip
                    said += rng.randbytes(rng.randrange(200)) if attempt % 2 else b""
                    with_error = False
                    try:
                        await peer.send(said)
                    except ConnectionError:
                        with_error = True
                    if rng.random() < 0.5 and not with_error:
                        peer.tls.reset()
            await eventually(lambda: empty(ours), 10)
            async with await peer_connect(port_of(ours), certs) as peer:
                await check_echo(peer, 1, there.port)
        assert not [line for line in lines if "internal error" in line]
