"""Users of the server and the TCP connections that it makes for them."""

from __future__ import annotations

import asyncio
import os
import random
import re
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from anytls import server
from anytls.server import DENIALS_SHOWN, Server
from mtt.address import Endpoint
from mtt.errors import DestinationError
from mtt.inbound import anytls_answer
from mtt.layers import anytls_heads
from mtt.layers.anytls_server import MAX_STREAMS
from mtt.layers.parked import Parked
from mtt.net.dial import Dialer
from mtt.outbound import direct
from mtt.outcome import Outcome
from mtt.users import accounts
from tests.anytls.serving import empty, know, server_for
from tests.support.anytlspeer import (
    ALERT,
    FIN,
    HEART_REQUEST,
    HEART_RESPONSE,
    MD5,
    PSH,
    SERVER_SETTINGS,
    SETTINGS,
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
from tests.support.tunnels import (
    SOON,
    Tcp,
    connect,
    echo,
    eventually,
    listening,
    logged,
    port_of,
    serving,
)

HERE = "127.0.0.1"


async def greet(connection: Tcp) -> None:
    """A destination that speaks first, and ends when it has heard something."""
    await connection.send(b"220 welcome\r\n")
    await connection.read()


async def refused(peer: AnyTlsPeer, stream: int, host: str, port: int) -> str:
    """Try to get somewhere; the reason why not."""
    await peer.open(stream, host, port)
    command, number, text = await peer.frame()
    assert (command, number) == (SYNACK, stream)
    assert text
    assert await peer.frame() == (FIN, stream, b"")
    return text.decode()


async def check_echo(peer: AnyTlsPeer, stream: int, port: int) -> None:
    await peer.open(stream, HERE, port, b"still there")
    assert await peer.frame() == (SYNACK, stream, b"")
    assert await peer.data(stream, 11) == b"still there"


async def test_what_comes_with_the_destination_is_not_lost(certs: Certs) -> None:
    async with asyncio.timeout(SOON), serving(echo) as there, server_for(certs) as server:
        async with await peer_connect(port_of(server), certs) as peer:
            await peer.open(1, HERE, there.port, b"first ")
            await peer.send(frame(PSH, 1, b"second"))
            assert await peer.frame() == (SYNACK, 1, b"")
            assert await peer.data(1, 12) == b"first second"
        await eventually(lambda: empty(server))


async def test_a_destination_may_come_byte_by_byte_and_speak_first(certs: Certs) -> None:
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


async def check_session(peer: AnyTlsPeer) -> None:
    await peer.send(frame(HEART_REQUEST, 77))
    assert await peer.frame() == (HEART_RESPONSE, 77, b"")


async def test_megabytes_get_there_and_back_and_the_end_comes_last(certs: Certs) -> None:
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


async def test_many_streams_of_one_session_have_nothing_to_do_with_each_other(
    certs: Certs,
) -> None:
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


async def test_failures_are_told_in_words_that_tell_nothing_else(
    certs: Certs,
) -> None:
    async with asyncio.timeout(SOON), serving(echo) as there, server_for(certs) as server:
        with logged() as lines:
            async with await peer_connect(port_of(server), certs) as peer:
                assert await refused(peer, 1, HERE, 1) == "connection refused"
                know(server, {})
                assert await refused(peer, 2, "no.such.test", 80) == "host unreachable"
                assert await refused(peer, 3, "10.0.0.1", 80) == "not allowed"
                await check_echo(peer, 4, there.port)
        # The others are of no interest to anybody but the user.
        (line,) = lines
        assert "destination denied (-allow, -deny): TCP 10.0.0.1:80" in line
        page = parse(server.metrics_page())
        assert page["mtt_dial_failures_total"] == 2
        assert page["mtt_anytls_denied_total"] == 1
        await eventually(lambda: empty(server))


async def test_a_destination_that_does_not_answer_has_timed_out(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def dial(*_: object) -> socket.socket:
        await asyncio.sleep(60)
        raise AssertionError

    monkeypatch.setattr(Dialer, "_connect_socket", dial)
    monkeypatch.setattr(direct, "CONNECT_TIME", 0.1)
    async with (
        asyncio.timeout(SOON),
        server_for(certs) as server,
        await peer_connect(port_of(server), certs) as peer,
    ):
        assert await refused(peer, 1, HERE, 80) == "timed out"


async def test_a_name_that_is_none_fails_like_one_that_is_not_there(certs: Certs) -> None:
    async with (
        asyncio.timeout(20),
        server_for(certs) as server,
        await peer_connect(port_of(server), certs) as peer,
    ):
        assert await refused(peer, 1, "a..b", 80) == "host unreachable"
        assert await refused(peer, 2, "-" * 255, 80) == "host unreachable"


@pytest.mark.parametrize(
    "host",
    [HERE, "::1", "localhost", "0.0.0.0", "::", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "::1%lo",
     # What the system's resolver, too, takes for addresses (inet_aton).
     "0", "127.1", "2130706433", "0x7f.1", "0177.0.0.1", "127.0.0.01"],
)  # fmt: skip
async def test_this_machine_is_denied_unless_it_is_allowed(host: str, certs: Certs) -> None:
    async with listening() as there, asyncio.timeout(SOON), server_for(certs, allow=[]) as server:
        async with await peer_connect(port_of(server), certs) as peer:
            assert await refused(peer, 1, host, there.port) == "not allowed"
        assert there.count == 0


async def test_denied_destinations_are_logged_throttled(certs: Certs) -> None:
    async with asyncio.timeout(SOON), server_for(certs, allow=[]) as server:
        with logged() as lines:
            async with await peer_connect(port_of(server), certs) as peer:
                for stream in range(1, 20):
                    assert await refused(peer, stream, HERE, 22) == "not allowed"
        assert len(lines) == DENIALS_SHOWN
        assert re.fullmatch(
            r"INFO destination denied \(-allow, -deny\): TCP 127\.0\.0\.1:22, user default, "
            r"from 127\.0\.0\.1:\d+",
            lines[0],
        )


async def test_only_those_addresses_of_a_name_are_tried_that_are_allowed(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow = [HERE]
    async with (
        asyncio.timeout(SOON),
        serving(echo) as there,
        server_for(certs, allow=allow) as server,
    ):
        tried: list[Endpoint] = []
        dial = server._outbound._dialer.connect

        async def watched(endpoint: Endpoint, factory: Any) -> asyncio.Transport:
            tried.append(endpoint)
            return await dial(endpoint, factory)

        monkeypatch.setattr(server._outbound._dialer, "connect", watched)
        know(server, {
            "mixed.test": ["10.0.0.1", "::1", HERE, "169.254.169.254"],
            "inner.test": ["::1", "::ffff:10.0.0.1"],
        })  # fmt: skip
        async with await peer_connect(port_of(server), certs) as peer:
            await peer.open(1, "mixed.test", there.port, b"hello")
            assert await peer.frame() == (SYNACK, 1, b"")
            assert await peer.data(1, 5) == b"hello"
            assert await refused(peer, 2, "inner.test", there.port) == "not allowed"
        assert tried == [Endpoint((HERE,), there.port)]


async def test_the_port_counts_as_well(certs: Certs) -> None:
    async with asyncio.timeout(SOON), serving(echo) as there:
        allow = [f"{HERE}:{there.port}"]
        async with (
            server_for(certs, allow=allow) as server,
            await peer_connect(port_of(server), certs) as peer,
        ):
            await check_echo(peer, 1, there.port)
            assert await refused(peer, 2, HERE, there.port + 1) == "not allowed"


@pytest.mark.parametrize(
    "data", [b"\x02\x00\x00", b"\x03\x00\x00\x50", b"\x03\x02\xff\xff\0\0", b"\x03\x03a b\0\0"]
)
async def test_what_is_no_address_ends_the_stream_alone(data: bytes, certs: Certs) -> None:
    async with (
        asyncio.timeout(SOON),
        serving(echo) as there,
        server_for(certs) as server,
        await peer_connect(port_of(server), certs) as peer,
    ):
        await peer.send(frame(SYN, 1), frame(PSH, 1, data))
        assert await peer.frame() == (FIN, 1, b"")
        await check_echo(peer, 2, there.port)


async def test_a_destination_that_never_comes_ends_the_stream_alone(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anytls_heads, "DESTINATION_TIME", 0.2)
    async with (
        asyncio.timeout(SOON),
        server_for(certs) as server,
        await peer_connect(port_of(server), certs) as peer,
    ):
        await peer.send(frame(SYN, 1), frame(SYN, 2), frame(PSH, 2, b"\x03\xfe"))
        assert {(await peer.frame())[1] for _ in range(2)} == {1, 2}
        await check_session(peer)


def slow_dial(server: Server, then: Callable[[], Awaitable[asyncio.Transport]]) -> asyncio.Event:
    """Let connecting take until the event is set."""
    go_on = asyncio.Event()

    async def dial(host: str, port: int) -> asyncio.Transport:
        await go_on.wait()
        return await then()

    server._outbound.connect = dial  # type: ignore[method-assign]
    return go_on


async def test_a_slow_destination_is_acknowledged_before_the_client_gives_up_its_session(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anytls_answer, "ANSWER_TIME", 0.1)
    async with asyncio.timeout(SOON), serving(echo) as there, server_for(certs) as server:
        dial = server._outbound._dialer.connect
        go_on = slow_dial(server, lambda: dial(Endpoint((HERE,), there.port), Parked))
        async with await peer_connect(port_of(server), certs) as peer:
            await peer.open(1, "slow.test", 80, b"hello")
            assert await peer.frame() == (SYNACK, 1, b"")
            assert there.count == 0
            go_on.set()
            assert await peer.data(1, 5) == b"hello"


async def test_one_that_fails_after_that_is_an_end_without_a_byte(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anytls_answer, "ANSWER_TIME", 0.1)

    async def fail() -> asyncio.Transport:
        raise DestinationError(Outcome.TIMED_OUT)

    async with asyncio.timeout(SOON), server_for(certs) as server:
        go_on = slow_dial(server, fail)
        async with await peer_connect(port_of(server), certs) as peer:
            await peer.open(1, "slow.test", 80, b"hello")
            assert await peer.frame() == (SYNACK, 1, b"")
            go_on.set()
            assert await peer.frame() == (FIN, 1, b"")
            await check_session(peer)


async def test_who_leaves_during_the_dial_leaves_nothing_behind(certs: Certs) -> None:
    async with asyncio.timeout(SOON), listening() as there, server_for(certs) as server:
        dial = server._outbound._dialer.connect
        go_on = slow_dial(server, lambda: dial(Endpoint((HERE,), there.port), Parked))
        async with await peer_connect(port_of(server), certs) as peer:
            await peer.open(1, "slow.test", 80, b"the end")
            await peer.send(frame(FIN, 1))
            await peer.open(2, "slow.test", 80)
            await eventually(lambda: server.tunnels == 2)
            peer.tls.reset()
            await eventually(lambda: not server._frontend.sessions)
            go_on.set()
            async with await there.accept() as destination:
                assert await destination.rest() == b"the end"
        await eventually(lambda: empty(server))


async def test_nobody_is_dialled_for_streams_that_were_given_up(certs: Certs) -> None:
    """A stream that is reset takes no room in its session, so its dial must not go on either."""
    count = 2 * MAX_STREAMS
    async with asyncio.timeout(20), server_for(certs) as server:
        slow_dial(server, asyncio.Future)
        async with AnyTlsPeer(await tls_connect(port_of(server), certs)) as peer:
            await peer.send(preamble(), frame(SETTINGS, 0, b"v=2\nhalf-close=1"))
            for number in range(count):
                await peer.open(number, "slow.test", 80)
                await peer.send(frame(FIN, number) * (number % 2), frame(PSH, number))
            await peer.open(count, "slow.test", 80)
            await eventually(lambda: server.counters.streams == count + 1)
            await eventually(lambda: server.tunnels == 1)


async def test_a_client_of_version_1_is_told_nothing(certs: Certs) -> None:
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


async def test_the_padding_scheme_of_the_file_is_for_those_who_have_another(
    certs: Certs, tmp_path: Path
) -> None:
    scheme = b"stop=2\n0=40-40\n1=100-100\n"
    path = tmp_path / "scheme"
    path.write_bytes(scheme)
    async with asyncio.timeout(SOON), server_for(certs, **{"padding-scheme": str(path)}) as server:
        for md5, updates in ((MD5, [(UPDATE, 0, scheme)]), ("", [(UPDATE, 0, scheme)])):
            async with AnyTlsPeer(await tls_connect(port_of(server), certs)) as peer:
                await peer.send(preamble(), settings(md5=md5))
                heard = [await peer.frame() for _ in range(len(updates) + 1)]
                assert heard == [*updates, (SERVER_SETTINGS, 0, b"v=2")]


async def test_max_conns_refuses_streams_of_sessions_there_are(certs: Certs) -> None:
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


# Users.


def write_users(path: Path, **users: str) -> str:
    path.write_text("".join(f"{name}:{password}\n" for name, password in users.items()))
    path.chmod(0o600)
    return str(path)


async def test_many_users_each_with_their_own_counters(
    certs: Certs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounts, "MAX_SHOWN", 3)
    users = {f"user{n}": f"secret {n}" for n in range(10_000)} | {'a"b\\c': "odd one"}
    path = write_users(tmp_path / "users", **users)
    who = ('a"b\\c', "user9999", "user0", "user17", "user5000")
    async with (
        asyncio.timeout(SOON),
        serving(echo) as there,
        server_for(certs, users=path) as server,
    ):
        for number, name in enumerate(who, 1):
            async with await peer_connect(port_of(server), certs, password=users[name]) as peer:
                await peer.open(1, HERE, there.port, b"x" * number)
                assert await peer.frame() == (SYNACK, 1, b"")
                assert await peer.data(1, number) == b"x" * number
                page = parse(server.metrics_page())
                shown = name if number <= 3 else ""
                label = shown.replace("\\", "\\\\").replace('"', '\\"')
                assert page[f'mtt_anytls_user_sessions{{user="{label}"}}'] == 1
            await eventually(lambda: empty(server))
        page = parse(server.metrics_page())
        prefix = "mtt_anytls_user_"
        up = {
            name.partition('user="')[2].partition('",direction="up"')[0]: value
            for name, value in page.items()
            if name.startswith(f"{prefix}transferred_bytes_total") and '"up"' in name
        }
        # Those that came after the third stand together.
        assert up == {'a\\"b\\\\c': 1, "user9999": 2, "user0": 3, "": 4 + 5}
        assert page[f'{prefix}streams_opened_total{{user=""}}'] == 2
        assert page[f'{prefix}sessions{{user="user0"}}'] == 0
        assert len([name for name in page if name.startswith(prefix)]) == 4 * 4


async def test_users_are_read_again_and_former_ones_are_cut(certs: Certs, tmp_path: Path) -> None:
    path = write_users(tmp_path / "users", stays="one", leaves="two", changes="three")
    async with (
        asyncio.timeout(SOON),
        serving(echo) as there,
        server_for(certs, users=path) as server,
    ):
        peers = {
            password: await peer_connect(port_of(server), certs, password=password)
            for password in ("one", "two", "three")
        }
        for peer in peers.values():
            await check_echo(peer, 1, there.port)
        with logged() as lines:
            write_users(tmp_path / "users", stays="one", changes="new", comes="four")
            server.reload()
            await eventually(lambda: any("read again: users: 3; " in line for line in lines))
        assert any(line.endswith("sessions of former users that were cut: 2") for line in lines)
        for password in ("two", "three"):
            with pytest.raises(ConnectionError):
                await peers[password].frame()
        await check_echo(peers["one"], 2, there.port)
        for password in ("new", "four"):
            async with await peer_connect(port_of(server), certs, password=password) as peer:
                await check_echo(peer, 1, there.port)
        page = parse(server.metrics_page())
        assert page['mtt_anytls_user_streams_opened_total{user="changes"}'] == 2
        assert 'mtt_anytls_user_streams_opened_total{user="leaves"}' not in page

        (tmp_path / "users").write_text("nonsense\n")
        with logged() as lines:
            server.reload()
            await eventually(lambda: any("the old users stay" in line for line in lines))
        await check_echo(peers["one"], 3, there.port)
        for peer in peers.values():
            peer.tls.close()


async def test_what_is_announced_and_what_a_worker_will_begin_with(
    certs: Certs, tmp_path: Path
) -> None:
    path = write_users(tmp_path / "users", one="1", two="2")
    async with server_for(certs, users=path) as server:
        with logged() as lines:
            server.announce()
            assert f"listening on {server.addresses[0]}, AnyTLS, users: 2; cert" in lines[0]
            write_users(tmp_path / "users", one="1", two="2", three="3")
            server.renew()
            server.announce()
            assert ", users: 3; " in lines[1]
            Path(path).unlink()
            server.renew()
            assert "ERROR the old users stay: -users: cannot read" in lines[2]


async def test_nothing_that_a_user_sends_breaks_anything(
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


async def test_stream_that_ends_while_it_is_dialled_is_given_up(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    async with asyncio.timeout(SOON), server_for(certs) as server:
        monkeypatch.setattr(server._outbound, "connect", never)
        async with await peer_connect(port_of(server), certs) as peer:
            await peer.open(1, HERE, 1)
            await eventually(lambda: server.tunnels == 1)
            await peer.send(frame(FIN, 1))
            await eventually(lambda: server.tunnels == 0)
            await peer.open(3, HERE, 1, b"this much is to be delivered")
            await peer.send(frame(FIN, 3))
            await check_session(peer)
            assert server.tunnels == 1
