"""Our AnyTLS client with our server: what applications see."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

import pytest

from tests.anytls.associations import Udp as Peer
from tests.anytls.proxying import (
    GENERAL,
    NOT_ALLOWED,
    REFUSED,
    SUCCEEDED,
    UNREACHABLE,
    check_echo,
    client_for,
    given_client,
    nothing_open,
    reply_of,
    through,
)
from tests.anytls.serving import empty, know, server_for
from tests.proxy.clients import FAILURE4, TUNNELS, socks4a, socks5_login
from tests.proxy.test_association import Udp, ask
from tests.support.certs import Certs
from tests.support.metrics import numbers, scrape
from tests.support.tunnels import (
    SOON,
    Tcp,
    connect,
    echo,
    eventually,
    maybe_reset,
    port_of,
    serving,
)

# What applications ask for.


@pytest.mark.parametrize("name", TUNNELS)
async def test_every_protocol_reaches_the_destination(name: str, certs: Certs) -> None:
    data = os.urandom(300_000)
    async with (
        asyncio.timeout(SOON),
        serving(echo) as there,
        server_for(certs) as server,
        client_for(certs, port_of(server)) as client,
    ):
        know(server, {"echo.test": ["127.0.0.1"]})
        said, answer = TUNNELS[name](there.port)
        async with await connect(port_of(client)) as application:
            await application.send(said)
            assert await application.exactly(len(answer)) == answer
            _, received = await asyncio.gather(
                application.send(data), application.exactly(len(data))
            )
            assert received == data
        await eventually(lambda: nothing_open(client) and not server.tunnels)


async def test_each_direction_ends_by_itself(certs: Certs) -> None:
    async def answer_at_the_end(connection: Tcp) -> None:
        data = await connection.rest()
        await connection.send(data[::-1])

    data = os.urandom(1_000_000)
    async with (
        asyncio.timeout(SOON),
        serving(answer_at_the_end) as there,
        server_for(certs) as server,
        client_for(certs, port_of(server)) as client,
        through(client, there.port) as application,
    ):
        await application.send(data)
        await application.finish()
        assert await application.rest() == data[::-1]


async def test_replies_tell_the_truth(certs: Certs, refused_port: int) -> None:
    denied = "127.0.0.2/32"
    async with (
        serving(echo) as there,
        server_for(certs, deny=[denied]) as server,
        client_for(certs, port_of(server)) as client,
    ):
        know(server, {"echo.test": ["127.0.0.1"]})
        for host, port, code in (
            ("127.0.0.1", there.port, SUCCEEDED),
            ("echo.test", there.port, SUCCEEDED),
            ("127.0.0.1", refused_port, REFUSED),
            ("echo.test", refused_port, REFUSED),
            ("127.0.0.2", there.port, NOT_ALLOWED),
            ("nobody.test", there.port, UNREACHABLE),
        ):
            if host == "127.0.0.2":
                know(server, {"denied.test": [host]})
                host = "denied.test"
            assert await reply_of(client, host, port) == code, host
        async with await connect(port_of(client)) as application:
            await application.send(socks4a(refused_port)[0])
            assert await application.rest() == FAILURE4
        # The server answers for others all the same, in sessions that are used again.
        await check_echo(client, there.port)
        assert client.counters.sessions < 4


async def test_a_destination_that_answers_later_than_the_server_waits(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client is told of a success in time, and a failure after that ends the connection."""
    monkeypatch.setattr("mtt.inbound.anytls_answer.ANSWER_TIME", 0.1)
    async with server_for(certs) as server, client_for(certs, port_of(server)) as client:
        known = asyncio.Event()

        async def resolve(host: str, port: int) -> list[object]:
            await known.wait()
            return []

        server._resolver.resolve = resolve  # type: ignore[assignment, method-assign]
        async with through(client, 9, "late.test") as application:
            known.set()
            async with asyncio.timeout(SOON):
                with maybe_reset():
                    assert await application.rest() == b""


async def test_local_users(certs: Certs, tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("pässword\n")
    path.chmod(0o600)
    async with (
        serving(echo) as there,
        server_for(certs) as server,
        client_for(
            certs, port_of(server), **{"user": "user", "user-password-file": str(path)}
        ) as client,
        await connect(port_of(client)) as application,
    ):
        said, answer = socks5_login(there.port)
        await application.send(said + b"hello")
        assert await application.exactly(len(answer) + 5) == answer + b"hello"
        async with await connect(port_of(client)) as stranger:
            await stranger.send(b"\5\1\0")
            assert await stranger.rest() == b"\5\xff"


# Sessions.


async def test_a_session_is_used_again_and_never_shared(certs: Certs) -> None:
    async with (
        serving(echo) as there,
        server_for(certs) as server,
        client_for(certs, port_of(server)) as client,
    ):
        for _ in range(5):
            await check_echo(client, there.port)
            await eventually(lambda: numbers(client)["anytls_idle_sessions"] == 1)
        assert client.counters.sessions == server.counters.sessions == 1
        async with through(client, there.port), through(client, there.port):
            assert numbers(client)["sessions"] == 2
            assert numbers(client)["anytls_idle_sessions"] == 0
        await eventually(lambda: numbers(client)["anytls_idle_sessions"] == 2)


async def test_session_is_used_again_before_the_destination_has_ended(certs: Certs) -> None:
    """One connection after the other: the next one does not wait for the end of the last."""

    async def keep_open(connection: Tcp) -> None:
        await connection.send(await connection.read())
        await done.wait()

    done = asyncio.Event()
    async with (
        serving(keep_open) as there,
        server_for(certs) as server,
        client_for(certs, port_of(server)) as client,
    ):
        for _ in range(5):
            await check_echo(client, there.port)
        assert client.counters.sessions == server.counters.sessions == 1
        assert server.tunnels == 5
        done.set()
        await eventually(lambda: numbers(client)["anytls_idle_sessions"] == 1)


async def test_without_reuse_each_connection_has_its_own(certs: Certs) -> None:
    async with (
        serving(echo) as there,
        server_for(certs) as server,
        client_for(certs, port_of(server), dr=True) as client,
    ):
        for _ in range(3):
            await check_echo(client, there.port)
        await eventually(lambda: empty(server))
        assert client.counters.sessions == 3
        assert not numbers(client)["sessions"]


async def test_sessions_are_made_ready(certs: Certs) -> None:
    async with (
        serving(echo) as there,
        server_for(certs) as server,
        client_for(certs, port_of(server), warm=3) as client,
    ):
        pool = client._servers[0]
        await eventually(lambda: pool.idle == 3 and pool._newest_idle())
        await check_echo(client, there.port)
        assert client.counters.sessions == 3


async def test_draining_ends_idle_sessions_and_waits_for_busy_ones(certs: Certs) -> None:
    async with (
        serving(echo) as there,
        server_for(certs) as server,
        client_for(certs, port_of(server), warm=3) as client,
    ):
        pool = client._servers[0]
        await eventually(lambda: pool.idle == 3 and pool._newest_idle())
        async with through(client, there.port) as application:
            draining = asyncio.create_task(client.drain())
            await eventually(lambda: numbers(client)["sessions"] == 1)
            await application.check_echo(b"still here")
            assert not draining.done()
        async with asyncio.timeout(SOON):
            await draining
        await eventually(lambda: empty(server))


async def test_next_connection_works_after_a_server_restart(certs: Certs) -> None:
    async with serving(echo) as there, contextlib.AsyncExitStack() as stack:
        async with server_for(certs) as server:
            address = server.addresses[0]
            client = await stack.enter_async_context(client_for(certs, port_of(server), warm=2))
            await check_echo(client, there.port)
            old = await stack.enter_async_context(through(client, there.port))
        with maybe_reset():
            assert await old.rest() == b""
        assert await reply_of(client, "127.0.0.1", there.port) == GENERAL
        async with server_for(certs, b=address):
            await check_echo(client, there.port)


# UDP.


async def test_datagrams(certs: Certs) -> None:
    with Peer() as there, Udp() as application:
        async with (
            asyncio.timeout(SOON),
            server_for(certs) as server,
            client_for(certs, port_of(server)) as client,
            await connect(port_of(client)) as control,
        ):
            know(server, {"echo.test": ["127.0.0.1"]})
            port = await ask(control)
            name = b"\0\0\0\3\x09echo.test" + there.port.to_bytes(2, "big")
            number = b"\0\0\0\1\x7f\0\0\1" + there.port.to_bytes(2, "big")
            for head in (name, number):
                for payload in (b"", b"ping", os.urandom(60_000)):
                    application.send(head + payload, port)
                    data, source = await there.receive()
                    assert data == payload
                    there.send(payload[::-1], source)
                    # From where it really came.
                    assert await application.receive() == number + payload[::-1]
            assert client.counters.bytes_up == client.counters.bytes_down == 2 * 60_004
            assert client.tunnels == server.tunnels == 1
            control.close()
            await eventually(lambda: nothing_open(client) and not server.tunnels)
            # The session is as good as any other.
            await eventually(lambda: numbers(client)["anytls_idle_sessions"] == 1)


async def test_an_association_ends_with_its_stream(certs: Certs) -> None:
    async with (
        asyncio.timeout(SOON),
        server_for(certs) as server,
        client_for(certs, port_of(server)) as client,
        await connect(port_of(client)) as control,
    ):
        await ask(control)
        await server.close()
        assert await control.rest() == b""
        await eventually(lambda: nothing_open(client))


async def test_no_server_for_datagrams(certs: Certs, refused_port: int) -> None:
    async with client_for(certs, refused_port) as client, await connect(port_of(client)) as control:
        await control.send(b"\5\1\0" + b"\5\3\0\1\0\0\0\0\0\0")
        assert (await control.rest())[:4] == b"\5\0\5\1"


# Numbers, ends.


async def test_metrics(certs: Certs) -> None:
    async with (
        serving(echo) as there,
        server_for(certs) as server,
        client_for(certs, port_of(server), metrics="0") as client,
        through(client, there.port) as application,
        await connect(port_of(client)) as control,
    ):
        await application.check_echo(b"12345")
        await ask(control)
        samples = await scrape(client.metrics_addresses[0])
        assert samples["tunnels"] == samples["anytls_udp_associations"] == 1
        assert samples["sessions"] == samples["streams_opened_total"] == samples["streams"] == 2
        assert samples["anytls_idle_sessions"] == 0
        assert samples['transferred_bytes_total{direction="up"}'] == 5
        application.close()
        await eventually(lambda: numbers(client)["anytls_idle_sessions"] == 1)
        assert (await scrape(client.metrics_addresses[0]))["anytls_idle_sessions"] == 1


async def test_closing_ends_everything(certs: Certs) -> None:
    async with serving(echo) as there, server_for(certs) as server:
        async with contextlib.AsyncExitStack() as stack:
            client = await stack.enter_async_context(client_for(certs, port_of(server), warm=2))
            application = await stack.enter_async_context(through(client, there.port))
            control = await stack.enter_async_context(await connect(port_of(client)))
            await ask(control)
            half = await stack.enter_async_context(await connect(port_of(client)))
            await half.send(b"\5")
            await client.close()
            for end in (application, control, half):
                with maybe_reset():
                    assert await end.rest() == b""
        await eventually(lambda: empty(server))


def test_options_that_cannot_work(certs: Certs, tmp_path: Path) -> None:
    from mtt.errors import UsageError

    with pytest.raises(UsageError, match="-ca: cannot read"):
        given_client(certs, 1, ca=str(tmp_path / "nothing"))


@pytest.mark.parametrize("keeps", [True, False])
async def test_http_requests_on_one_connection_are_all_answered(
    keeps: bool, certs: Certs
) -> None:
    """Also by an origin that ends its connection after each answer, and does not say so."""

    async def answer(connection: Tcp) -> None:
        while await connection.until(b"\r\n\r\nabc"):
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            if not keeps:
                break

    async with (
        serving(answer) as there,
        server_for(certs) as server,
        client_for(certs, port_of(server)) as client,
        await connect(port_of(client)) as application,
    ):
        for number in range(10):
            method = ("POST", "PUT")[number % 2]
            await application.send(
                f"{method} http://127.0.0.1:{there.port}/ HTTP/1.1\r\nHost: x\r\n"
                "Content-Length: 3\r\n\r\nabc".encode()
            )
            answered = await application.until(b"\r\n\r\nok")
            assert answered == b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
        application.close()
        await eventually(lambda: nothing_open(client) and not server.tunnels)
