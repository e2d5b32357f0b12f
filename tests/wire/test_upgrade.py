"""The opening handshake: recorded exchanges in both directions, then each rule on its own."""

from __future__ import annotations

import pytest

from mtt.wire import upgrade
from mtt.wire.http1 import Reply, Request, Response, parse_request, parse_response
from mtt.wire.upgrade import Upgrade, UpgradeError, UpgradeRefused
from tests.support.vectors import WSS, handshake

PREFERENCE = ("smux_on", "smux_off")
KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455, 1.3
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def test_the_example_of_the_rfc() -> None:
    assert upgrade.accept_key(KEY) == ACCEPT


@pytest.mark.parametrize("name", WSS)
def test_recorded_handshakes_to_the_byte(name: str) -> None:
    sent, answered = handshake(name)
    parsed = parse_request(sent)
    key = parsed.first("sec-websocket-key")
    protocol = parsed.first("sec-websocket-protocol")
    assert key and protocol
    assert upgrade.request(parsed.target, "test.local", key, (protocol,)) == sent
    assert upgrade.check_request(parsed, PREFERENCE) == Upgrade(key, protocol)
    assert upgrade.switching_protocols(key, protocol) == answered
    assert upgrade.check_response(parse_response(answered), key) == protocol


# The client's request.


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/", "/"),
        ("", "/"),
        ("ws", "/ws"),
        ("/ws?a=b&c", "/ws?a=b&c"),
        ("?x", "/?x"),
        ("/ws#top", "/ws"),
        ("/ws?x#top", "/ws?x"),
        ("/a b?c d", "/a%20b?c%20d"),
        ("/é", "/%C3%A9"),
        ("/%77s", "/%77s"),
        ("/100%", "/100%25"),
        ("/a\r\nX: y", "/a%0D%0AX:%20y"),
        ("/?a\r\nX: y", "/?a%0D%0AX:%20y"),
        ("/\udcff", "/%FF"),
        ('/"<>\\^`{|}', "/%22%3C%3E%5C%5E%60%7B%7C%7D"),
    ],
)
def test_paths_become_request_targets(path: str, target: str) -> None:
    assert parse_request(upgrade.request(path, "a", KEY)).target == target


@pytest.mark.parametrize(
    ("host", "header"),
    [
        ("test.local", "test.local"),
        ("192.0.2.1", "192.0.2.1"),
        ("::1", "[::1]"),
        ("fe80::1%eth0", "[fe80::1]"),
    ],
)
def test_the_host_header(host: str, header: str) -> None:
    assert parse_request(upgrade.request("/", host, KEY)).host == header


def test_several_sub_protocols_or_none() -> None:
    offered = parse_request(upgrade.request("/", "a", KEY, ("x", "smux_on")))
    assert offered.first("sec-websocket-protocol") == "x, smux_on"
    bare = parse_request(upgrade.request("/", "a", KEY))
    assert bare.first("sec-websocket-protocol") is None
    assert upgrade.check_request(bare, PREFERENCE) == Upgrade(KEY, None)


def test_additional_headers_stand_where_go_puts_them() -> None:
    """As recorded from the Go program's agents."""
    head, _ = handshake("p-anyproxy-http-connect")
    key = parse_request(head).first("sec-websocket-key")
    assert key is not None
    headers = {
        "X-Group-Password": "grppass",
        "X-Group-Id": "grp",
        "X-Client-Id": "c1-r0-dc5rm39ksduf863vh6f0",
        "Authorization": "Basic Z3d1c2VyOmd3cGFzcw==",
    }
    assert upgrade.request("/ws", "127.0.0.1", key, port=28444, headers=headers) == head
    with_offer = upgrade.request("/ws", "::1", key, ("x",), port=1, headers=headers)
    assert b"Host: [::1]:1\r\n" in with_offer
    assert b"\r\nSec-WebSocket-Protocol: x\r\nSec-WebSocket-Version: 13\r\n" in with_offer


# What the client accepts.


def response(**changed: str | None) -> Response:
    headers: dict[str, str | None] = {
        "upgrade": "websocket",
        "connection": "Upgrade",
        "sec-websocket-accept": ACCEPT,
    }
    headers.update({name.replace("_", "-"): value for name, value in changed.items()})
    return Response(
        version=(1, 1),
        headers=[(name, value) for name, value in headers.items() if value is not None],
        status=101,
        reason="Switching Protocols",
    )


@pytest.mark.parametrize(
    ("changed", "protocol"),
    [
        ({}, None),
        ({"upgrade": "WebSocket", "connection": "upgrade"}, None),
        ({"connection": "keep-alive, Upgrade"}, None),
        ({"connection": "upgrade,,\tkeep-alive"}, None),
        ({"upgrade": "x/1, websocket"}, None),
        ({"sec_websocket_protocol": "smux_off"}, "smux_off"),
        ({"sec_websocket_protocol": "never-offered"}, "never-offered"),
        ({"sec_websocket_extensions": "x-unknown; permessage-deflate"}, None),
    ],
)
def test_valid_responses(changed: dict[str, str], protocol: str | None) -> None:
    assert upgrade.check_response(response(**changed), KEY) == protocol


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"upgrade": None}, "another protocol"),
        ({"upgrade": "h2c"}, "another protocol"),
        ({"connection": None}, "Connection: Upgrade"),
        ({"connection": "keep-alive, Upgrades"}, "Connection: Upgrade"),
        ({"connection": "no upgrade"}, "Connection: Upgrade"),
        ({"sec_websocket_accept": None}, "Sec-WebSocket-Accept"),
        ({"sec_websocket_accept": ACCEPT.lower()}, "Sec-WebSocket-Accept"),
        ({"sec_websocket_extensions": "permessage-deflate"}, "compression"),
        ({"sec_websocket_extensions": "x, PerMessage-Deflate ;a=b"}, "compression"),
    ],
)
def test_invalid_responses(changed: dict[str, str | None], words: str) -> None:
    with pytest.raises(UpgradeError, match=words):
        upgrade.check_response(response(**changed), KEY)


def test_repeated_lines_are_one_list() -> None:
    twice = response()
    twice.headers.insert(0, ("connection", "keep-alive"))
    twice.headers.insert(0, ("upgrade", "x/1"))
    assert upgrade.check_response(twice, KEY) is None


def test_another_status_is_named() -> None:
    answer = parse_response(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
    with pytest.raises(UpgradeError, match=r"404 Not Found.*path"):
        upgrade.check_response(answer, KEY)


@pytest.mark.parametrize("status", ["502 Bad Gateway", "503 Busy", "504 Gateway Timeout"])
def test_server_out_of_reach_of_the_web_server_in_front(status: str) -> None:
    answer = parse_response(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())
    with pytest.raises(UpgradeError, match=f"with {status}: a web server in front does not reach"):
        upgrade.check_response(answer, KEY)


# What the server accepts.


def asked(
    method: str = "GET", version: str = "1.1", target: str = "/", **changed: str | None
) -> Request:
    headers: dict[str, str | None] = {
        "Host": "test.local",
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": KEY,
    }
    headers.update({name.replace("_", "-"): value for name, value in changed.items()})
    lines = [f"{name}: {value}" for name, value in headers.items() if value is not None]
    return parse_request(
        "\r\n".join([f"{method} {target} HTTP/{version}", *lines, "", ""]).encode()
    )


@pytest.mark.parametrize(
    "proper",
    [
        asked(),
        asked(version="1.0", Host=None),
        asked(Connection="keep-alive, UPGRADE"),
        asked(Upgrade="h2c, WebSocket"),
        asked(Sec_WebSocket_Version="8, 13"),
        asked(Origin="https://TEST.local"),
        asked(Origin="https://test.local/x", target="http://test.local/"),
    ],
)
def test_valid_requests(proper: Request) -> None:
    assert upgrade.check_request(proper, PREFERENCE) == Upgrade(KEY, None)


def test_repeated_lines_of_a_request_are_one_list() -> None:
    twice = asked()
    twice.headers.insert(0, ("connection", "keep-alive"))
    twice.headers.insert(0, ("upgrade", "h2c"))
    assert upgrade.check_request(twice) == Upgrade(KEY, None)


def test_the_key_may_have_any_length() -> None:
    accepted = upgrade.check_request(asked(Sec_WebSocket_Key="x"))
    assert accepted.key == "x"


@pytest.mark.parametrize(
    ("improper", "status"),
    [
        (asked(Connection=None), 400),
        (asked(Connection="keep-alive"), 400),
        (asked(Upgrade=None), 400),
        (asked(Upgrade="websockets"), 400),
        (asked(method="POST"), 405),
        (asked(method="HEAD"), 405),
        (asked(Sec_WebSocket_Version=None), 400),
        (asked(Sec_WebSocket_Version="8"), 400),
        (asked(Origin="https://other.local"), 403),
        (asked(Origin="https://test.local:8443"), 403),
        (asked(Origin="null"), 403),
        (asked(Sec_WebSocket_Key=None), 400),
        (asked(Sec_WebSocket_Key=""), 400),
        # The order of the checks.
        (asked(method="POST", Connection=None), 400),
        (asked(method="POST", Sec_WebSocket_Version="8"), 405),
        (asked(Origin="null", Sec_WebSocket_Version="8"), 400),
        (asked(Origin="null", Sec_WebSocket_Key=None), 403),
    ],
)
def test_invalid_requests(improper: Request, status: int) -> None:
    with pytest.raises(UpgradeRefused) as caught:
        upgrade.check_request(improper, PREFERENCE)
    text = {400: b"Bad Request\n", 403: b"Forbidden\n", 405: b"Method Not Allowed\n"}[status]
    assert caught.value.reply == Reply(
        status,
        (
            ("Content-Type", "text/plain; charset=utf-8"),
            ("Sec-Websocket-Version", "13"),
            ("X-Content-Type-Options", "nosniff"),
        ),
        text,
    )


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ("smux_off, smux_on", "smux_on"),
        ("smux_off", "smux_off"),
        (" x ,smux_on ", "smux_on"),
        ("SMUX_ON", None),
        ("", None),
        ("x", None),
    ],
)
def test_the_server_s_preference_decides(offered: str, chosen: str | None) -> None:
    accepted = upgrade.check_request(asked(Sec_WebSocket_Protocol=offered), PREFERENCE)
    assert accepted.protocol == chosen


def test_repeated_sub_protocol_lines_are_one_list() -> None:
    """RFC 6455, 11.3.4."""
    twice = asked(Sec_WebSocket_Protocol="chat")
    twice.headers.append(("sec-websocket-protocol", "x, smux_off"))
    assert upgrade.check_request(twice, PREFERENCE).protocol == "smux_off"



def test_no_sub_protocol_leaves_no_header() -> None:
    assert upgrade.switching_protocols(KEY, None) == (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
    )


# The beginning of a request.

FORWARDED = (
    b"GET /ws?a=b HTTP/1.1\r\nhost: test.local:443\r\nX-Forwarded-For: 192.0.2.1, 2001:db8::1\r\n"
    b"Cookie: a=\"b\"; c=\xc3\xa9\r\nEmpty:\r\n" + b"X: y\r\n" * 100 + b"\r\n"
)
PLAIN = b"GET /ws HTTP/1.1\r\nHost: test.local\r\n"


@pytest.mark.parametrize(
    "head",
    [upgrade.request("/secret", "test.local", KEY, ("smux_on", "smux_off")), FORWARDED],
    ids=["client", "proxy"],
)
def test_every_prefix_of_a_handshake_is_accepted(head: bytes) -> None:
    beginning = upgrade.RequestBeginning()
    for end in range(len(head)):
        assert beginning.goes_on(head[:end]), head[:end]
        assert upgrade.RequestBeginning().goes_on(head[:end])


@pytest.mark.parametrize("excess", [0, 1])
def test_the_longest_lines_of_a_handshake(excess: int) -> None:
    size = upgrade.MAX_LINE + excess
    field = PLAIN + b"A:".ljust(size - 1, b"a") + b"\r\n"
    target = b"GET /".ljust(size - 11, b"a") + b" HTTP/1.1\r\n"
    for head in (field, target):
        assert upgrade.RequestBeginning().goes_on(head) is (not excess)


@pytest.mark.parametrize(
    "head",
    [
        b"\0", b"g", b"GE ", b"GETX", b"GET  ", b"GET *", b"GET h", b"GET /\n", b"GET /\x7f",
        b"GET / HTTP/1.0", b"GET / HTTP/2", b"GET / HTTP/1.1\n", b"GET / HTTP/1.1\r\r",
        PLAIN + b"A ", PLAIN + b" ", PLAIN + b":", PLAIN + b"A: \0", PLAIN + b"A: \x1b",
        PLAIN + b"A\r\n", PLAIN + b"Host: test.local\r\n", PLAIN + b"Content-Length: 0\r\n",
        PLAIN + b"Transfer-Encoding: chunked\r\n", PLAIN.replace(b"local", b"lo/cal"),
        b"GET /" + b"a" * (upgrade.MAX_LINE - 4), PLAIN + b"A:" + b" " * (upgrade.MAX_LINE - 1),
    ],
)  # fmt: skip
def test_invalid_prefix_is_refused_at_its_last_byte(head: bytes) -> None:
    beginning = upgrade.RequestBeginning()
    assert beginning.goes_on(head[:-1])
    assert not beginning.goes_on(head)
    assert not upgrade.RequestBeginning().goes_on(head)
