"""A client whose way to the server leads through an HTTP or SOCKS5 proxy."""

from __future__ import annotations

import asyncio
import gc
import logging

import pytest

from mtt.errors import DestinationError
from mtt.layers.connect import ConnectClient
from mtt.options.proxy import with_environment
from mtt.outcome import Outcome
from mtt.users.user import User
from tests.proxy.direct import direct_proxy
from tests.support.certs import Certs
from tests.support.metrics import numbers
from tests.support.tunnels import (
    SOON,
    check_works,
    client_of,
    connect,
    echo,
    empty,
    eventually,
    in_every_mode,
    logged,
    maybe_reset,
    port_of,
    server_at,
    serving,
)

USER = User("user", "hush: \u00e4@/")
LOGIN = "user:hush%3A%20%C3%A4%40%2F@"


def warnings(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("WARNING")]


@in_every_mode
@pytest.mark.parametrize("scheme", ["http", "socks5"])
@pytest.mark.parametrize("users", [(), (USER,)], ids=["open", "login"])
async def test_tunnels_work_through_a_proxy(
    users: tuple[User, ...], scheme: str, mode: str, certs: Certs, short_quiet: None
) -> None:
    with logged(logging.DEBUG) as lines:
        async with (
            serving(echo) as there,
            server_at(mode, there.port, certs) as server,
            direct_proxy(users=users) as proxy,
            client_of(
                mode, 1, certs,
                s=f"echo.test:{port_of(server)}",  # only the proxy knows this name
                proxy=f"{scheme}://{LOGIN if users else ''}127.0.0.1:{port_of(proxy)}",
            ) as client,
        ):  # fmt: skip
            client.announce()
            for size in (1, 300_000):
                await check_works(port_of(client), b"x" * size)
            assert set(proxy.asked) == {("echo.test", port_of(server))}
            await client._upstream.close()  # idle sessions
            await eventually(lambda: empty(client) and empty(server) and empty(proxy))
    announcement = next(line for line in lines if "listening on" in line)
    assert announcement.endswith(f", through the proxy 127.0.0.1:{port_of(proxy)}")
    assert not warnings(lines)
    assert not any("hush" in line for line in lines)


@in_every_mode
@pytest.mark.parametrize("scheme, code", [("http", " (407)"), ("socks5", "")])
async def test_wrong_login_is_logged_without_the_password(
    scheme: str, code: str, mode: str, certs: Certs
) -> None:
    with logged(logging.DEBUG) as lines:
        async with (
            direct_proxy(users=(USER,)) as proxy,
            client_of(mode, 1, certs, proxy=f"{scheme}://user:hush@127.0.0.1:{port_of(proxy)}")
            as client,
            asyncio.timeout(SOON),
            await connect(port_of(client)) as application,
        ):
            with maybe_reset():
                assert await application.rest() == b""
            await eventually(lambda: empty(client))
            held = numbers(client)
    assert any("wrong user or password" in line for line in warnings(lines))  # the proxy's
    assert warnings(lines)[-1].endswith(
        f"the proxy 127.0.0.1:{port_of(proxy)} does not accept the user and the password of "
        f"-proxy{code}"
    )
    assert not any("hush" in line for line in lines)
    assert held["dial_failures_total"] == 1


@in_every_mode
@pytest.mark.parametrize("scheme, reason", [("http", "403 Forbidden"), ("socks5", "not allowed")])
async def test_refusal_of_the_proxy_is_logged(
    scheme: str, reason: str, mode: str, certs: Certs
) -> None:
    with logged() as lines:
        async with (
            direct_proxy() as proxy,
            client_of(mode, 1, certs, proxy=f"{scheme}://127.0.0.1:{port_of(proxy)}") as client,
            asyncio.timeout(SOON),
            await connect(port_of(client)) as application,
        ):
            proxy.error = DestinationError(Outcome.NOT_ALLOWED)
            with maybe_reset():
                assert await application.rest() == b""
    (line,) = warnings(lines)
    assert line.endswith(
        f"cannot connect to 127.0.0.1:1 through the proxy 127.0.0.1:{port_of(proxy)}: "
        f"{reason}"
    )


@in_every_mode
async def test_unreachable_proxy_is_logged(mode: str, certs: Certs, refused_port: int) -> None:
    with logged() as lines:
        async with (
            client_of(mode, 1, certs, proxy=f"127.0.0.1:{refused_port}") as client,
            asyncio.timeout(SOON),
            await connect(port_of(client)) as application,
        ):
            with maybe_reset():
                assert await application.rest() == b""
    (line,) = warnings(lines)
    assert line.endswith(
        f"the proxy: cannot connect to 127.0.0.1:{refused_port}: connection refused"
    )


async def test_connections_ready_in_advance_come_through_the_proxy(certs: Certs) -> None:
    async with (
        serving(echo) as there,
        server_at("wss", there.port, certs) as server,
        direct_proxy() as proxy,
        client_of(
            "wss", port_of(server), certs,
            proxy=f"http://127.0.0.1:{port_of(proxy)}", preconnect=3,
        ) as client,
    ):  # fmt: skip
        await eventually(lambda: numbers(client)["waiting_connections"] == 3)
        assert len(proxy.asked) == 3
        await check_works(port_of(client))
        assert numbers(client)["waiting_connections_used_total"] == 1


async def test_fast_open_reaches_the_proxy(certs: Certs) -> None:
    async with (
        serving(echo) as there,
        server_at("tls", there.port, certs) as server,
        direct_proxy() as proxy,
        client_of(
            "tls", port_of(server), certs,
            proxy=f"http://127.0.0.1:{port_of(proxy)}", **{"fast-open": True},
        ) as client,
    ):  # fmt: skip
        await check_works(port_of(client))


async def test_proxy_of_the_environment(certs: Certs) -> None:
    async with (
        serving(echo) as there,
        server_at("tls", there.port, certs) as server,
        direct_proxy() as proxy,
    ):
        environ = {"HTTPS_PROXY": f"http://127.0.0.1:{port_of(proxy)}"}
        values = with_environment({"proxy": "env"}, environ)
        where = f"echo.test:{port_of(server)}"
        async with client_of("tls", 1, certs, s=where, **values) as client:
            await check_works(port_of(client))
        assert proxy.asked == [("echo.test", port_of(server))]
        # This machine is never asked for through a proxy of the environment.
        async with client_of("tls", port_of(server), certs, **values) as client:
            await check_works(port_of(client))
        assert len(proxy.asked) == 1


async def test_nothing_is_kept_of_the_request(certs: Certs) -> None:
    async with (
        serving(echo) as there,
        server_at("tls", there.port, certs) as server,
        direct_proxy() as proxy,
        client_of("tls", port_of(server), certs, proxy=f"127.0.0.1:{port_of(proxy)}") as client,
        await connect(port_of(client)) as application,
    ):
        gc.collect()
        gc.disable()
        try:
            await application.check_echo()
            assert not [each for each in gc.get_objects() if isinstance(each, ConnectClient)]
        finally:
            gc.enable()
