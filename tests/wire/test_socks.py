"""SOCKS 5, 4 and 4a: the messages, what is refused and with which answer, and noise."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from mtt.outcome import Outcome
from mtt.wire.socks import (
    LOGIN,
    MAX_MESSAGE,
    NO_METHOD,
    SocksError,
    datagram_header,
    login_reply,
    method_reply,
    parse_datagram,
    parse_login,
    parse_methods,
    parse_request,
    parse_request4,
    reply4,
    reply5,
)

Parser = Callable[[bytes], Any]

GOOD: list[tuple[Parser, str, tuple[Any, ...]]] = [
    (parse_methods, "050100", (b"\0",)),
    (parse_methods, "0503000102", (b"\0\1\2",)),
    (parse_methods, "0500", (b"",)),
    (parse_login, "01" "0475736572" "0470617373", (b"user", b"pass")),
    (parse_login, "010000", (b"", b"")),
    (parse_login, "01ff" + "75" * 255 + "ff" + "70" * 255, (b"u" * 255, b"p" * 255)),
    (parse_request, "05010001" "7f000001" "0050", (1, "127.0.0.1", 80)),
    (parse_request, "05010003" "0b" + b"example.com".hex() + "01bb", (1, "example.com", 443)),
    (parse_request, "05010004" + "00" * 15 + "01" "01bb", (1, "::1", 443)),
    (parse_request, "050100040000000000000000" "0000ffff7f000001" "0050", (1, "127.0.0.1", 80)),
    (parse_request, "05010003" "09" + b"127.0.0.1".hex() + "0050", (1, "127.0.0.1", 80)),
    (parse_request, "05010003" "05" + b"[::1]".hex() + "0050", (1, "::1", 80)),
    (parse_request, "05030001" "00000000" "0000", (3, "0.0.0.0", 0)),
    (parse_request, "05030003" "00" "0000", (3, "", 0)),
    (parse_request, "0502ff01" "7f000001" "0050", (2, "127.0.0.1", 80)),
    (parse_request, "05010003" "ff" + "61" * 255 + "0050", (1, "a" * 255, 80)),
    (parse_request4, "0401" "0050" "7f000001" "00", (1, "127.0.0.1", 80)),
    (parse_request4, "0401" "0050" "7f000001" "6d6500", (1, "127.0.0.1", 80)),
    (parse_request4, "0402" "0050" "00000000" "00", (2, "0.0.0.0", 80)),
    (parse_request4, "0401" "0050" "00000001" "6d6500" + b"a.example\0".hex(),
     (1, "a.example", 80)),
    (parse_request4, "0401" "0050" "000000ff" "00" + b"2001:DB8::1\0".hex(),
     (1, "2001:db8::1", 80)),
    (parse_request4, "0401" "0050" "000000ff" "00" + b"[2001:DB8::1]\0".hex(),
     (1, "2001:db8::1", 80)),
    (parse_request4, "0401" "0050" "00000001" + "75" * 255 + "00" + "61" * 255 + "00",
     (1, "a" * 255, 80)),
]  # fmt: skip


@pytest.mark.parametrize(("parse", "wire", "found"), GOOD)
def test_message_is_parsed_whole_in_pieces_and_before_more_data(
    parse: Parser, wire: str, found: tuple[Any, ...]
) -> None:
    message = bytes.fromhex(wire)
    assert len(message) <= MAX_MESSAGE
    assert parse(message) == (*found, len(message))
    assert parse(message + b"\x05payload") == (*found, len(message))
    for size in range(len(message)):
        assert parse(message[:size]) is None, size


NO = "0001000000000000"  # the zero address that follows a reply code
BAD: list[tuple[Parser, str, str, str]] = [
    (parse_login, "0504", "unknown version", "0101"),
    (parse_request, "04", "another version", "0501" + NO),
    (parse_request, "05010002", "address type 2", "0508" + NO),
    (parse_request, "05010000", "address type 0", "0508" + NO),
    (parse_request, "05010003" "00" "0050", "empty domain", "0501" + NO),
    (parse_request, "05010003" "03" + b"a\nb".hex() + "0050", "control", "0501" + NO),
    (parse_request, "05010003" "02fffe" "0050", "UTF-8", "0501" + NO),
    (parse_request4, "0401" "0050" "00000001" "00" "00", "empty domain", "005b" + "00" * 6),
    (parse_request4, "0401" "0050" "00000001" "00" + b"a b\0".hex(), "spaces", "005b" + "00" * 6),
    (parse_request4, "0401" "0050" "7f000001" + "75" * 256, "255 bytes", "005b" + "00" * 6),
    (parse_request4, "0401" "0050" "00000001" "00" + "61" * 256, "255 bytes", "005b" + "00" * 6),
]  # fmt: skip


@pytest.mark.parametrize(("parse", "wire", "words", "answer"), BAD)
def test_refused_messages_and_their_answers(
    parse: Parser, wire: str, words: str, answer: str
) -> None:
    with pytest.raises(SocksError, match=words) as raised:
        parse(bytes.fromhex(wire))
    assert raised.value.answer.hex() == answer


def test_answers() -> None:
    assert method_reply(LOGIN) == b"\x05\x02"
    assert method_reply(NO_METHOD) == b"\x05\xff"
    assert (login_reply(True), login_reply(False)) == (b"\x01\x00", b"\x01\x01")
    assert (reply4(True).hex(), reply4(False).hex()) == ("005a000000000000", "005b000000000000")
    assert reply5(Outcome.SUCCEEDED).hex() == "05000001000000000000"
    assert reply5(Outcome.CONNECTION_REFUSED).hex() == "05050001000000000000"
    assert reply5(Outcome.SUCCEEDED, "127.0.0.1", 4660).hex() == "050000017f0000011234"
    assert reply5(Outcome.SUCCEEDED, "::1", 1).hex() == "05000004" + "00" * 15 + "01" + "0001"


@pytest.mark.parametrize(
    ("outcome", "reply"),
    [
        (Outcome.SUCCEEDED, 0),
        (Outcome.GENERAL_FAILURE, 1),
        (Outcome.NOT_ALLOWED, 2),
        (Outcome.NETWORK_UNREACHABLE, 3),
        (Outcome.HOST_UNREACHABLE, 4),
        (Outcome.CONNECTION_REFUSED, 5),
        (Outcome.TIMED_OUT, 6),
    ],
)
def test_every_outcome_has_a_reply(outcome: Outcome, reply: int) -> None:
    assert reply5(outcome) == b"\5" + bytes([reply]) + b"\0\1\0\0\0\0\0\0"


# Datagrams.


@pytest.mark.parametrize(
    ("wire", "host", "port", "start"),
    [
        ("000000" "01" "7f000001" "0035" "68690a", "127.0.0.1", 53, 10),
        ("000000" "01" "7f000001" "0035", "127.0.0.1", 53, 10),
        ("ffff00" "03" "01" "61" "0035" "00", "a", 53, 8),
        ("000000" "04" + "00" * 15 + "01" "0035" "00", "::1", 53, 22),
        ("000000" "03" "05" + b"[::1]".hex() + "0035" "00", "::1", 53, 12),
    ],
)  # fmt: skip
def test_a_datagram(wire: str, host: str, port: int, start: int) -> None:
    assert parse_datagram(bytes.fromhex(wire)) == (host, port, start)


@pytest.mark.parametrize(
    ("wire", "words"),
    [
        ("", "incomplete"),
        ("000000", "incomplete"),
        ("000000" "01" "7f000001" "00", "incomplete"),
        ("000001" "01" "7f000001" "0035" "00", "fragment"),
        ("000080" "01" "7f000001" "0035" "00", "fragment"),
        ("000000" "02" "7f000001" "0035" "00", "type 2"),
        ("000000" "03" "00" "0035" "00", "empty"),
    ],
)  # fmt: skip
def test_a_datagram_to_drop(wire: str, words: str) -> None:
    with pytest.raises(SocksError, match=words):
        parse_datagram(bytes.fromhex(wire))


def test_the_header_of_a_datagram_for_the_client() -> None:
    for host, port in (("192.0.2.1", 53), ("2001:db8::1", 65535), ("a.example", 1)):
        header = datagram_header(host, port)
        assert parse_datagram(header + b"payload") == (host, port, len(header))


def test_noise_gives_a_message_or_socks_error() -> None:
    rng = random.Random(4)
    parsers: list[tuple[Parser, bytes]] = [
        (parse_methods, b"\5"), (parse_login, b"\1"), (parse_request, b"\5\1\0"),
        (parse_request4, b"\4\1\0\x50\0\0\0"), (parse_datagram, b"\0\0\0"),
    ]  # fmt: skip
    found = missing = refused = 0
    for _ in range(5000):
        parse, start = rng.choice(parsers)
        noise = bytearray(start + rng.randbytes(rng.randrange(60)))
        if rng.random() < 0.7:  # small numbers are lengths and types, and make sense
            noise[len(start) :] = bytes(rng.choice(b"\0\1\3\4a.\xc3") for _ in noise[len(start) :])
        try:
            message = parse(bytes(noise))
        except SocksError as error:
            assert str(error)
            refused += 1
            continue
        if message is None:
            assert len(noise) < MAX_MESSAGE
            missing += 1
        else:
            assert 0 < message[-1] <= len(noise)
            found += 1
    assert min(found, missing, refused) > 300
