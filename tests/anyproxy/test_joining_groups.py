"""Which agents may join a group: passwords, limits, failed logins, certificates."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from anyproxy.credentials import BLOCKED, HAS_NO_PASSWORD, NO_PASSWORD, WRONG_PASSWORD
from anyproxy.gateway import Gateway
from anyproxy.options import FILE, CredentialOptions, GroupOptions
from mtt.trust.tls_options import ClientTls, ServerTls
from mtt.users import group_passwords
from mtt.users.login_throttle import MAX_FAILURES
from mtt.users.user import User
from tests.anyproxy.serving import GROUP, agent_for, gateway_for, http_port
from tests.anyproxy.test_gateway import basic, status_of
from tests.anyproxy.upgrades import (
    ID,
    LOGIN,
    answered,
    members,
    plain_gateway,
    upgrade,
    verdict,
)
from tests.proxy.clients import http_connect
from tests.support.certs import Certs
from tests.support.tunnels import Tcp, connect, eventually, logged, port_of

# Groups and their passwords.


async def test_wrong_group_password_is_refused_and_changes_nothing(certs: Certs) -> None:
    async with plain_gateway(certs) as gateway, await connect(port_of(gateway)) as peer:
        await peer.send(upgrade())
        assert (await answered(peer))[0] == 101
        assert await verdict(gateway, "thief", GROUP, "wrong") == (403, WRONG_PASSWORD)
        for nothing in ("", None):
            assert await verdict(gateway, "thief", GROUP, nothing) == (403, NO_PASSWORD)
        assert members(gateway) == [ID]
        said = http_connect(1, "127.0.0.1", basic(password="wrong"))[0]
        assert b" 407 " in await status_of(http_port(gateway), said)


async def test_agents_without_a_password_join_if_that_is_allowed(certs: Certs) -> None:
    store = CredentialOptions(allow_without_password=True)
    async with (
        plain_gateway(certs, credentials=store) as gateway,
        await connect(port_of(gateway)) as peer,
    ):
        await peer.send(upgrade(password=None))
        assert (await answered(peer))[0] == 101
        assert await verdict(gateway, "thief", GROUP, "mine") == (403, HAS_NO_PASSWORD)
        said = http_connect(1, "127.0.0.1", basic(password="mine"))[0]
        assert b" 407 " in await status_of(http_port(gateway), said)


async def test_group_of_the_operator_and_its_limit(certs: Certs) -> None:
    groups = {GROUP: GroupOptions(password="fixed", max_agents=1)}
    async with (
        plain_gateway(certs, groups=groups) as gateway,
        await connect(port_of(gateway)) as peer,
    ):
        assert await verdict(gateway) == (403, WRONG_PASSWORD)
        await peer.send(upgrade(password="fixed"))
        assert (await answered(peer))[0] == 101
        full = (403, "the group has 1 agents, its limit")
        assert await verdict(gateway, "second", GROUP, "fixed") == full
        assert (await verdict(gateway, "second", "elsewhere", "fixed"))[0] == 101
        assert (await verdict(gateway, ID, GROUP, "fixed"))[0] == 101


async def test_agents_for_a_new_group_at_the_same_moment_have_one_password(
    certs: Certs, tmp_path: Path
) -> None:
    store = CredentialOptions(kind=FILE, path=str(tmp_path / "credentials.json"))
    async with plain_gateway(certs, credentials=store) as gateway, AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(await connect(port_of(gateway))) for _ in "1234"]
        for number, peer in enumerate(peers):
            await peer.send(upgrade(f"agent {number}", GROUP, f"password {number}"))
        statuses = [(await answered(peer))[0] for peer in peers]
        assert sorted(statuses) == [101, 403, 403, 403]
        winner = statuses.index(101)
        assert members(gateway) == [f"agent {winner}"]
        for number in range(4):
            password = b"password %d" % number
            assert gateway.credentials.check_user(GROUP, password, "") is (number == winner)


async def test_agent_that_leaves_during_the_check_does_not_join(
    certs: Certs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, started, over = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    check = group_passwords.check_stored

    def slowly(*args: Any) -> str | None:
        loop.call_soon_threadsafe(started.set)
        try:
            return check(*args)
        finally:
            loop.call_soon_threadsafe(over.set)

    monkeypatch.setattr("anyproxy.credentials.check_stored", slowly)
    store = CredentialOptions(kind=FILE, path=str(tmp_path / "credentials.json"))
    async with plain_gateway(certs, credentials=store) as gateway:
        async with await connect(port_of(gateway)) as peer:
            await peer.send(upgrade())
            await started.wait()
        await over.wait()
        await eventually(lambda: not len(gateway._frontend.handshakes))
        assert not members(gateway)


async def test_gateway_closes_during_a_check(
    certs: Certs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, started = asyncio.get_running_loop(), asyncio.Event()
    check = group_passwords.check_stored

    def slowly(*args: Any) -> str | None:
        loop.call_soon_threadsafe(started.set)
        return check(*args)

    monkeypatch.setattr("anyproxy.credentials.check_stored", slowly)
    store = CredentialOptions(kind=FILE, path=str(tmp_path / "credentials.json"))
    async with plain_gateway(certs, credentials=store) as gateway:
        peer = await connect(port_of(gateway))
        await peer.send(upgrade())
        await started.wait()
    async with peer:
        assert await ended(peer)


async def ended(peer: Tcp) -> bool:
    """Whether the peer's connection ends without data."""
    try:
        return await peer.rest() == b""
    except ConnectionResetError:
        return True


# The same id twice.


async def test_same_id_replaces_its_session_in_its_group_only(certs: Certs) -> None:
    async with plain_gateway(certs) as gateway, AsyncExitStack() as stack:
        old, new, elsewhere = [
            await stack.enter_async_context(await connect(port_of(gateway))) for _ in range(3)
        ]
        await old.send(upgrade())
        await elsewhere.send(upgrade(ID, "elsewhere", "other"))
        assert [(await answered(peer))[0] for peer in (old, elsewhere)] == [101, 101]
        await new.send(upgrade())
        assert (await answered(new))[0] == 101
        await old.rest()  # it is closed
        await eventually(lambda: len(gateway._frontend.sessions) == 2)
        assert members(gateway) == [ID]
        assert members(gateway, "elsewhere") == [ID]
        assert not gateway.groups.get(GROUP).leaving  # type: ignore[union-attr]
    await eventually(lambda: not members(gateway))


async def test_replaced_session_is_named_in_the_log(certs: Certs) -> None:
    with logged() as lines:
        async with plain_gateway(certs) as gateway, AsyncExitStack() as stack:
            for _ in range(2):
                peer = await stack.enter_async_context(await connect(port_of(gateway)))
                await peer.send(upgrade())
                assert (await answered(peer))[0] == 101
    first, second = [line for line in lines if "joined" in line]
    address = first.partition(" from ")[2].partition(",")[0]
    assert second.endswith(f"; it replaces that from {address}")


async def test_agents_that_join_in_a_loop_do_not_flood_the_log(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anyproxy.joining.CHANGES_SHOWN", 3)
    with logged() as lines:
        async with plain_gateway(certs) as gateway:
            for _ in range(10):
                assert (await verdict(gateway))[0] == 101
            await eventually(lambda: not members(gateway))
    assert sum("joined" in line for line in lines) == 3
    assert sum("left" in line for line in lines) == 3


# Failed logins.


@pytest.mark.parametrize("login", [None, User("gate", "wrong")])
async def test_wrong_logins_of_the_gateway_block_the_address(
    certs: Certs, login: User | None
) -> None:
    with logged() as lines:
        async with plain_gateway(certs, login=LOGIN) as gateway:
            for _ in range(MAX_FAILURES):
                assert await verdict(gateway, login=login) == (401, "Unauthorized")
            assert await verdict(gateway, login=login) == (403, BLOCKED)
            assert await verdict(gateway, login=LOGIN) == (403, BLOCKED)
            # So is what else it can log in to.
            said = http_connect(1, "127.0.0.1", basic())[0]
            assert b" 407 " in await status_of(http_port(gateway), said)
    assert sum(line.endswith(": wrong login of the gateway") for line in lines) == MAX_FAILURES
    assert not any(LOGIN.password in line for line in lines)


async def test_wrong_logins_of_users_block_their_address_for_agents(certs: Certs) -> None:
    async with plain_gateway(certs) as gateway, await connect(port_of(gateway)) as peer:
        await peer.send(upgrade())
        assert (await answered(peer))[0] == 101
        wrong = http_connect(1, "127.0.0.1", basic(password="wrong"))[0]
        for _ in range(MAX_FAILURES):
            assert b" 407 " in await status_of(http_port(gateway), wrong)
        assert await verdict(gateway, "second") == (403, BLOCKED)


async def test_requests_without_a_login_count_for_no_user(certs: Certs) -> None:
    async with plain_gateway(certs) as gateway, await connect(port_of(gateway)) as peer:
        await peer.send(upgrade())
        assert (await answered(peer))[0] == 101
        said = http_connect(1, "127.0.0.1")[0]  # as browsers begin
        for _ in range(2 * MAX_FAILURES):
            assert b" 407 " in await status_of(http_port(gateway), said)
        assert (await verdict(gateway, "second"))[0] == 101


# Mutual TLS.


async def test_agents_without_a_certificate_cannot_join_if_it_is_required(certs: Certs) -> None:
    tls = ServerTls(cert=certs.cert, key=certs.key, alpn=("http/1.1",), client_ca=certs.ca)
    async with gateway_for(certs, tls=tls, login=LOGIN) as gateway:
        context = ssl.create_default_context(cafile=certs.ca)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await tls_answer(gateway, context, certs.name, upgrade(login=LOGIN))
        context.load_cert_chain(certs.cert, certs.key)
        # The certificate replaces neither login nor password.
        for request, status in (
            (upgrade(), b"401"),
            (upgrade(ID, GROUP, "", login=LOGIN), b"403"),
            (upgrade(login=LOGIN), b"101"),
        ):
            assert await tls_answer(gateway, context, certs.name, request) == status


async def tls_answer(gateway: Gateway, context: ssl.SSLContext, name: str, said: bytes) -> bytes:
    """The status of the answer."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port_of(gateway), ssl=context, server_hostname=name
    )
    try:
        writer.write(said)
        return (await reader.readuntil(b"\r\n")).split()[1]
    finally:
        writer.transport.abort()


async def test_agent_of_ours_joins_with_all_three(certs: Certs) -> None:
    server = ServerTls(cert=certs.cert, key=certs.key, alpn=("http/1.1",), client_ca=certs.ca)
    client = ClientTls(ca=certs.ca, server_name=certs.name, cert=certs.cert, key=certs.key)
    groups = {"Büro": GroupOptions(password="pässword")}
    async with (
        gateway_for(certs, tls=server, login=LOGIN, groups=groups) as gateway,
        agent_for(certs, gateway, tls=client, login=LOGIN, group="Büro", password="pässword"),
    ):
        assert members(gateway, "Büro") == ["agent-r0"]
