"""The client side of SOCKS 5, against the examples of RFC 1928 and our own server side."""

from __future__ import annotations

import pytest

from mtt.outcome import Outcome
from mtt.wire import socks
from mtt.wire.socks_client import (
    LoginRefused,
    RequestRefused,
    SocksClient,
    SocksClientError,
)

LOGIN = (b"user", b"p\xc3\xa4ss")
CONNECTED = b"\x05\0\0\x01" + bytes(6)


@pytest.mark.parametrize(
    "host, sent",
    [
        ("server.example", "03 0e" + b"server.example".hex()),
        ("192.0.2.1", "01 c0000201"),
        ("2001:db8::1", "04 20010db8000000000000000000000001"),
    ],
)
def test_without_login(host: str, sent: str) -> None:
    client = SocksClient(host, 443)
    assert client.greeting == b"\x05\x01\0"
    request = client.feed(b"\x05\0")
    assert request == bytes.fromhex(f"05 01 00 {sent} 01bb")
    assert socks.parse_request(request) == (socks.CONNECT, host, 443, len(request))
    assert client.feed(CONNECTED + b"rest") == b""
    assert client.rest == b"rest"


def test_with_login() -> None:
    client = SocksClient("a", 1, LOGIN)
    assert client.greeting == b"\x05\x02\0\x02"
    login = client.feed(socks.method_reply(socks.LOGIN))
    assert socks.parse_login(login) == (*LOGIN, len(login))
    assert client.feed(socks.login_reply(True)) == b"\x05\x01\0\x03\x01a\0\x01"
    client.feed(socks.reply5(Outcome.SUCCEEDED, "2001:db8::1", 9))
    assert client.rest == b""


def test_proxy_may_ignore_the_login() -> None:
    client = SocksClient("a", 1, LOGIN)
    assert client.feed(b"\x05\0").startswith(b"\x05\x01\0")


@pytest.mark.parametrize("address", ["01 7f000001", "03 04 6e616d65", "03 00", "04" + "00" * 16])
def test_answers_may_come_byte_by_byte(address: str) -> None:
    client = SocksClient("a", 1, LOGIN)
    answers = b"\x05\x02" + b"\x01\0" + bytes.fromhex(f"05 00 00 {address} 0050")
    sent = [client.feed(bytes([byte])) for byte in answers]
    assert [len(each) for each in sent if each] == [12, 8]
    assert client.rest == b""


@pytest.mark.parametrize("login", [None, LOGIN])
@pytest.mark.parametrize("method", [0xFF, 1, 2])
def test_methods_that_fail(method: int, login: tuple[bytes, bytes] | None) -> None:
    client = SocksClient("a", 1, login)
    if login is None or method != 2:
        with pytest.raises(LoginRefused):
            client.feed(socks.method_reply(method))
    else:
        client.feed(socks.method_reply(method))
        with pytest.raises(LoginRefused):
            client.feed(socks.login_reply(False))


@pytest.mark.parametrize(
    "outcome", [each for each in Outcome if each not in (Outcome.SUCCEEDED, Outcome.UNRESOLVABLE)]
)
def test_refusals_have_their_outcome(outcome: Outcome) -> None:
    client = SocksClient("a", 1)
    client.feed(b"\x05\0")
    with pytest.raises(RequestRefused) as raised:
        client.feed(socks.reply5(outcome)[:2])  # some proxies send no more
    general = (Outcome.NO_AGENT, Outcome.OVERLOADED)
    assert raised.value.outcome is (Outcome.GENERAL_FAILURE if outcome in general else outcome)


@pytest.mark.parametrize("reply, text", [(7, "command not supported"), (8, "address type not"),
                                         (99, "the connection failed")])  # fmt: skip
def test_other_refusals(reply: int, text: str) -> None:
    client = SocksClient("a", 1)
    with pytest.raises(RequestRefused, match=text):
        client.feed(b"\x05\0" + socks.refusal5(reply))


@pytest.mark.parametrize("data", [b"HTTP/1.1 400", b"\x04\0", b"\x05\0\x04", b"\x05\0\x05\0\0\x05"])
def test_other_protocols(data: bytes) -> None:
    with pytest.raises(SocksClientError, match="it does not speak SOCKS5"):
        SocksClient("a", 1).feed(data)


@pytest.mark.parametrize("host, login", [("", None), ("a b", None), ("a" * 256, None),
                                         ("a", (b"u" * 256, b"p")), ("a", (b"u", b"p" * 256))])
def test_invalid_destinations_and_logins(host: str, login: tuple[bytes, bytes] | None) -> None:
    with pytest.raises(ValueError):
        SocksClient(host, 1, login)
