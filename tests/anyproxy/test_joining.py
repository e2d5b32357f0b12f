"""How the gateway answers upgrade requests, as the Go program does or more strictly; names."""

from __future__ import annotations

from pathlib import Path

import pytest

from anyproxy.credentials import WRONG_PASSWORD
from anyproxy.joining import MAX_NAME
from anyproxy.options import FILE, CredentialOptions
from mtt.users.user import User
from mtt.wire.agent import SUBPROTOCOL
from mtt.wire.upgrade import accept_key
from tests.anyproxy.serving import GROUP, PASSWORD
from tests.anyproxy.upgrades import (
    ID,
    KEY,
    LOGIN,
    answer,
    answered,
    members,
    plain_gateway,
    upgrade,
    verdict,
)
from tests.support.certs import Certs
from tests.support.tunnels import connect, eventually, logged, port_of

# The answers of the Go program.


async def test_answer_to_the_go_program_has_nothing_but_the_upgrade(certs: Certs) -> None:
    async with plain_gateway(certs) as gateway, await connect(port_of(gateway)) as peer:
        await peer.send(upgrade())
        head = (await peer.until(b"\r\n\r\n")).decode()
        assert head.strip().split("\r\n") == [
            "HTTP/1.1 101 Switching Protocols",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Accept: {accept_key(KEY)}",
        ]
        assert members(gateway) == [ID]
    await eventually(lambda: not members(gateway))


async def test_our_agent_gets_its_subprotocol(certs: Certs) -> None:
    async with plain_gateway(certs) as gateway:
        offer = f"Sec-WebSocket-Protocol: {SUBPROTOCOL}"
        status, headers, _ = await answer(gateway, upgrade(ID, GROUP, PASSWORD, offer))
        assert (status, headers["Sec-WebSocket-Protocol"]) == (101, SUBPROTOCOL)


@pytest.mark.parametrize(
    "start", ["GET /ws?x=y HTTP/1.1", "GET /ws? HTTP/1.1", "GET http://gateway.example/ws HTTP/1.1"]
)
async def test_query_is_no_part_of_the_path(certs: Certs, start: str) -> None:
    async with plain_gateway(certs) as gateway:
        assert (await verdict(gateway, start=start))[0] == 101


@pytest.mark.parametrize("path", ["/", "/WS", "/ws/", "/wss", "/api/ws", "/w%2573"])
async def test_other_paths_are_not_found(certs: Certs, path: str) -> None:
    async with plain_gateway(certs, login=LOGIN) as gateway:
        start = f"GET {path} HTTP/1.1"
        assert await verdict(gateway, "", start=start) == (404, "404 page not found")
        assert not members(gateway)


@pytest.mark.parametrize("id", [None, "", " \t "])
async def test_agent_without_an_id_is_a_bad_request(certs: Certs, id: str | None) -> None:
    async with plain_gateway(certs, login=LOGIN) as gateway:
        assert await verdict(gateway, id, "", without="Upgrade") == (400, "Client ID is required")


@pytest.mark.parametrize(
    "login", [None, User("", ""), User("gate", "key"), User("gate", ""), User("Gate", "kéy")]
)
async def test_wrong_login_of_the_gateway(certs: Certs, login: User | None) -> None:
    async with plain_gateway(certs, login=LOGIN) as gateway:
        # Before the handshake, the names and the group's password are looked at.
        request = upgrade(ID, "", "", login=login, without="Upgrade")
        status, headers, body = await answer(gateway, request)
        assert (status, body) == (401, "Unauthorized\n")
        assert "WWW-Authenticate" not in headers
        assert not members(gateway)


async def test_right_login_of_the_gateway(certs: Certs) -> None:
    async with (
        plain_gateway(certs, login=LOGIN) as gateway,
        await connect(port_of(gateway)) as peer,
    ):
        await peer.send(upgrade(login=LOGIN))
        assert (await answered(peer))[0] == 101
        assert members(gateway) == [ID]
        # It is no group's password.
        assert await verdict(gateway, "b", GROUP, "x", login=LOGIN) == (403, WRONG_PASSWORD)


async def test_login_is_ignored_if_none_is_required(certs: Certs) -> None:
    async with plain_gateway(certs) as gateway:
        for login in (None, User("any", "login")):
            assert (await verdict(gateway, login=login))[0] == 101


@pytest.mark.parametrize(
    "start, without, more, status",
    [
        ("POST /ws HTTP/1.1", "-", "X: y", 405),
        ("GET /ws HTTP/1.0", "-", "X: y", 400),
        ("GET /ws HTTP/1.1", "Upgrade", "X: y", 400),
        ("GET /ws HTTP/1.1", "Upgrade", "Upgrade: h2c", 400),
        ("GET /ws HTTP/1.1", "Connection", "X: y", 400),
        ("GET /ws HTTP/1.1", "Sec-WebSocket-Key", "X: y", 400),
        ("GET /ws HTTP/1.1", "Sec-WebSocket-Version", "X: y", 400),
        ("GET /ws HTTP/1.1", "Sec-WebSocket-Version", "Sec-WebSocket-Version: 8", 400),
    ],
)
async def test_request_that_is_no_handshake_decides_nothing(
    certs: Certs, tmp_path: Path, start: str, without: str, more: str, status: int
) -> None:
    path = tmp_path / "credentials.json"
    store = CredentialOptions(kind=FILE, path=str(path))
    async with plain_gateway(certs, credentials=store) as gateway:
        request = upgrade(ID, GROUP, PASSWORD, more, start=start, without=without)
        found, headers, body = await answer(gateway, request)
        assert found == status
        assert headers["Sec-Websocket-Version"] == "13"
        assert body == {400: "Bad Request\n", 405: "Method Not Allowed\n"}[status]
        assert not path.exists()  # the group's password is not set


@pytest.mark.parametrize(
    "more",
    [
        "Origin: https://elsewhere.example",
        "Origin: null",
        "Sec-WebSocket-Extensions: permessage-deflate",
        "Sec-WebSocket-Protocol: chat",
        "X-Unknown: header",
    ],
)
async def test_other_headers_are_ignored(certs: Certs, more: str) -> None:
    async with plain_gateway(certs) as gateway:
        status, headers, _ = await answer(gateway, upgrade(ID, GROUP, PASSWORD, more))
        assert status == 101
        assert set(headers) == {"Upgrade", "Connection", "Sec-WebSocket-Accept"}


@pytest.mark.parametrize("tail", [b"x", b"\x81\x80" + bytes(4)])
async def test_data_before_the_answer_is_refused(certs: Certs, tail: bytes) -> None:
    async with plain_gateway(certs) as gateway:
        assert (await answer(gateway, upgrade() + tail))[0] == 400
        assert not members(gateway)


async def test_refused_agent_may_ask_again_on_its_connection(certs: Certs) -> None:
    async with plain_gateway(certs) as gateway, await connect(port_of(gateway)) as peer:
        await peer.send(upgrade(password=""))
        assert (await answered(peer))[0] == 403
        await peer.send(upgrade())
        assert (await answered(peer))[0] == 101
        assert members(gateway) == [ID]


# Names.


@pytest.mark.parametrize(
    "name",
    [
        "x" * (MAX_NAME + 1),
        "ä" * (MAX_NAME // 2 + 1),
        "a\tb",
        "a\x80b",  # C1, in UTF-8
        "a\u202eb",  # turns the direction of text
        "a\u2028b",
        "a\u200bb",
        "a\udc80b",  # not UTF-8
    ],
)
async def test_hostile_names_are_refused(certs: Certs, name: str) -> None:
    with logged() as lines:
        async with plain_gateway(certs) as gateway:
            for id, group in ((name, GROUP), (ID, name)):
                head, tail = upgrade("@", "#").split(b"@")
                request = head + b"@" + tail
                request = request.replace(b"@", raw(id)).replace(b"#", raw(group))
                status, _, body = await answer(gateway, request)
                assert (status, body) == (403, "names have 1 to 128 bytes of printable UTF-8\n")
            assert not list(gateway.groups)
    refusals = [line for line in lines if "refused" in line]
    assert len(refusals) == 2
    for line in refusals:
        assert line.isprintable()
        assert len(line) < 1000


def raw(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


@pytest.mark.parametrize("name", ["x" * MAX_NAME, "Büro", "a b", "\N{PILE OF POO}", "a:b", "<b>"])
async def test_names_are_any_printable_text(certs: Certs, name: str) -> None:
    async with plain_gateway(certs) as gateway, await connect(port_of(gateway)) as peer:
        await peer.send(upgrade(name, name))
        assert (await answered(peer))[0] == 101
        assert members(gateway, name) == [name]


@pytest.mark.parametrize("group", [None, ""])
async def test_group_needs_a_name(certs: Certs, group: str | None) -> None:
    store = CredentialOptions(allow_without_password=True)
    async with plain_gateway(certs, credentials=store) as gateway:
        assert await verdict(gateway, ID, group) == (403, "the group has no name")


async def test_names_cannot_pose_as_the_rest_of_a_log_line(certs: Certs) -> None:
    name = "a' joined group 'b' from 192.0.2.1:1"
    with logged() as lines:
        async with plain_gateway(certs) as gateway, await connect(port_of(gateway)) as peer:
            await peer.send(upgrade(name, "b c"))
            assert (await answered(peer))[0] == 101
            await verdict(gateway, name, "b c", "secret?")
    joined, refused = [line for line in lines if "192.0.2.1" in line and " left " not in line]
    assert joined.startswith(f"INFO agent {name!r} joined group 'b c' from 127.0.0.1:")
    assert refused.endswith(f": agent {name!r} refused, group 'b c': {WRONG_PASSWORD}")
    assert not any(PASSWORD in line or "secret?" in line for line in lines)


async def test_group_with_a_name_and_password_beyond_ascii(certs: Certs) -> None:
    group, password = "Büro", "pässword"
    async with plain_gateway(certs) as gateway, await connect(port_of(gateway)) as peer:
        await peer.send(upgrade(ID, group, password))
        assert (await answered(peer))[0] == 101
        assert gateway.credentials.check_user(group, password.encode(), "") is True
