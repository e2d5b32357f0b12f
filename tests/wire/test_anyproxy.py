"""The messages of the Go program AnyProxy."""

from __future__ import annotations

import random
from typing import Any

import pytest

from mtt.outcome import Outcome
from mtt.wire import anyproxy
from mtt.wire.anyproxy import (
    FROM_AGENT,
    FROM_GATEWAY,
    AnyproxyError,
    Auth,
    AuthResponse,
    Close,
    Connect,
    ConnectResponse,
    Error,
    ForwardedPort,
    Message,
    PortForward,
    PortForwardResponse,
    StreamData,
    agent_id,
    agent_name,
    error_text,
    join_address,
    new_id,
    outcome_of,
    parse,
    split_address,
)
from tests.support.vectors import names, vector

ID = b"dc5rm3hksdufcocjla10"
WIRE_ID = ID.hex()
MESSAGES: dict[Message, str] = {
    Connect(ID, "tcp", "[::1]:80"): f"0101{WIRE_ID}0003746370" "00085b3a3a315d3a3830",
    ConnectResponse(ID, True): f"0102{WIRE_ID}010000",
    ConnectResponse(ID, False, "no"): f"0102{WIRE_ID}0000026e6f",
    Close(ID): f"0103{WIRE_ID}",
    Close(b"short"): "0103" + b"short".hex() + "00" * 15,
    PortForward("c1", (ForwardedPort(80, 8080, "nas", "tcp"), ForwardedPort(53, 5, "", "udp"))): (
        "0104" "00026331" "0002" "00501f9000036e6173" "03746370" "003500050000" "03756470"
    ),
    PortForwardResponse(True): "01050100000000",
    PortForwardResponse(False, "x", ((80, True), (81, False))): (
        "0105" "00" "000178" "0002" "005001" "005100"
    ),
    Auth("c", "g", "u", "p", ""): "0106" "000163" "000167" "000175" "000170" "0000",
    AuthResponse("ok", "why"): "0107" "00026f6b" "0003776879",
    Error("no group"): "0108" "0008" + b"no group".hex(),
}  # fmt: skip
BODIES = pytest.mark.parametrize("message", MESSAGES, ids=lambda case: repr(case)[:40])


@BODIES
def test_message_is_encoded_and_parsed(message: Message) -> None:
    wire = bytes.fromhex(MESSAGES[message])
    assert message.encode() == wire
    assert parse(wire) == message
    assert parse(memoryview(wire)) == message


@BODIES
def test_message_that_is_cut_anywhere_is_an_error(message: Message) -> None:
    wire = message.encode()
    for size in range(len(wire)):
        with pytest.raises(AnyproxyError):
            parse(wire[:size])


@BODIES
def test_bytes_after_the_body_are_ignored(message: Message) -> None:
    assert parse(message.encode() + b"more") == message


def test_data_reaches_to_the_end_of_the_message() -> None:
    for data in (b"", b"x", bytes(100_000)):
        assert parse(StreamData(ID, data).encode()) == StreamData(ID, data)
    assert StreamData(ID, b"ab").encode().hex() == f"0110{WIRE_ID}6162"
    for size in range(22):
        with pytest.raises(AnyproxyError):
            parse(StreamData(ID, b"").encode()[:size])


def messages_of(name: str) -> list[tuple[str, bytes]]:
    """The messages of a recording, with their direction."""
    return [
        (event["dir"], bytes.fromhex(event["message"]))
        for event in vector(name)
        if "message" in event
    ]


RECORDINGS = [name for name in names("p-anyproxy-*") if name != "p-anyproxy-host-patterns"]


@pytest.mark.parametrize("name", RECORDINGS)
def test_recorded_messages_are_encoded_to_the_same_bytes(name: str) -> None:
    for direction, wire in messages_of(name):
        message = parse(wire)
        assert message.encode() == wire
        if not isinstance(message, Auth):
            assert parse(wire, FROM_GATEWAY if direction == "s2c" else FROM_AGENT) == message


def test_recordings_have_the_messages_that_programs_send() -> None:
    kinds = {type(parse(wire)) for name in RECORDINGS for _, wire in messages_of(name)}
    assert kinds == {
        Connect, ConnectResponse, Close, PortForward, PortForwardResponse, Auth, Error, StreamData,
    }  # fmt: skip


@pytest.mark.parametrize("kind", range(256))
def test_types_of_the_other_side_are_errors(kind: int) -> None:
    wire = bytes((1, kind)) + bytes(40)
    for types, expected in (
        (FROM_GATEWAY, {0x01, 0x03, 0x05, 0x08, 0x10}),
        (FROM_AGENT, {0x02, 0x03, 0x04, 0x08, 0x10}),
        (None, {0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x10}),
    ):
        if kind in expected:
            parse(wire, types)
        else:
            with pytest.raises(AnyproxyError, match="unexpected message of type"):
                parse(wire, types)


@pytest.mark.parametrize("version", [0, 2, 255])
def test_other_versions_are_errors(version: int) -> None:
    with pytest.raises(AnyproxyError, match="unknown version"):
        parse(bytes((version, 3)) + bytes(20))


def test_ids_end_at_the_first_nul_and_are_cut() -> None:
    assert parse(b"\1\3" + b"ab\0cd".ljust(20, b"x")) == Close(b"ab")
    assert Close(b"x" * 30).encode() == b"\1\3" + b"x" * 20
    assert anyproxy.cut(b"ab\0cd".ljust(20, b"x")) == b"ab" + bytes(18)
    assert anyproxy.cut(ID) == ID


def test_only_one_is_true() -> None:
    for value in (0, 2, 255):
        message = parse(b"\1\2" + ID + bytes((value,)) + b"\0\0")
        assert message == ConnectResponse(ID, False)


def test_text_that_is_not_utf8_is_no_error() -> None:
    message = parse(b"\1\1" + ID + b"\0\3tcp" + b"\0\2\xff\xfe")
    assert message == Connect(ID, "tcp", "\ufffd\ufffd")


@pytest.mark.parametrize(
    "message",
    [
        Connect(ID, "tcp", "x" * 65536),
        PortForward("c", (ForwardedPort(1, 1, "", "x" * 256),)),
        PortForward("c", (ForwardedPort(1, 1, "", ""),) * 65536),
        PortForwardResponse(True, "x" * 65536),
    ],
    ids=lambda message: type(message).__name__,
)
def test_what_has_no_form_on_the_wire_is_refused(message: Message) -> None:
    with pytest.raises(ValueError):
        message.encode()


def test_noise_gives_messages_or_errors() -> None:
    rng = random.Random(1)
    whole = [message.encode() for message in MESSAGES]
    for _ in range(20_000):
        noise = bytearray(rng.choice(whole) + rng.randbytes(rng.choice((0, 3))))
        for _ in range(rng.choice((1, 1, 4))):
            noise[rng.randrange(len(noise))] = rng.randrange(256)
        del noise[rng.randrange(2 * len(noise)) :]
        try:
            message: Any = parse(bytes(noise))
        except AnyproxyError:
            continue
        assert parse(message.encode()) == message


def test_new_ids_look_like_those_of_go() -> None:
    assert new_id(bytes(12)) == b"0" * 20
    assert new_id(b"\xff" * 12) == b"v" * 19 + b"g"
    rng = random.Random(2)
    for _ in range(100):
        made = new_id(rng.randbytes(12))
        assert len(made) == 20
        assert set(made) <= set(b"0123456789abcdefghijklmnopqrstuv")


def test_ids_of_agents_are_unique_and_have_a_name() -> None:
    made = agent_id("office", 2, bytes(12))
    assert made == "office-r2-" + "0" * 20
    assert agent_name(made) == "office-r2"
    for name in ("office", "office-r2", "office-r2-" + "0" * 19, "office-r2-" + "z" * 20):
        assert agent_name(name) == name


def test_addresses_of_targets() -> None:
    for host, port, text in (
        ("example.com", 80, "example.com:80"),
        ("192.0.2.1", 0, "192.0.2.1:0"),
        ("2001:db8::1", 65535, "[2001:db8::1]:65535"),
    ):
        assert join_address(host, port) == text
        assert split_address(text) == (host, port)
    for text in ("", "host", "host:", ":80", "host:http", "host:65536", "host:-1", "::1", "a:1:2"):
        assert split_address(text) is None


@pytest.mark.parametrize(
    "text, outcome",
    [
        ("dial tcp 127.0.0.1:1: connect: connection refused", Outcome.CONNECTION_REFUSED),
        ("Connection denied - host '169.254.169.254:80' is forbidden", Outcome.NOT_ALLOWED),
        ("Connection denied - host 'no such host' is forbidden", Outcome.NOT_ALLOWED),
        ("dial tcp 127.0.0.1:1: connect: permission denied", Outcome.NOT_ALLOWED),
        ("dial tcp: lookup nas on 127.0.0.53:53: no such host", Outcome.UNRESOLVABLE),
        ("dial tcp: lookup denied.example: no such host", Outcome.UNRESOLVABLE),
        ("dial tcp 192.0.2.1:80: i/o timeout", Outcome.TIMED_OUT),
        ("dial tcp 192.0.2.1:80: connect: connection timed out", Outcome.TIMED_OUT),
        ("dial tcp 192.0.2.1:80: connect: no route to host", Outcome.HOST_UNREACHABLE),
        ("dial tcp [::2]:80: connect: network is unreachable", Outcome.NETWORK_UNREACHABLE),
        ("dial unix /run/x: something else", Outcome.GENERAL_FAILURE),
        ("", Outcome.GENERAL_FAILURE),
    ],
)
def test_error_texts_of_go_have_outcomes(text: str, outcome: Outcome) -> None:
    assert outcome_of(text) is outcome


def test_outcomes_have_error_texts_of_go() -> None:
    for outcome in Outcome:
        text = error_text(outcome, "tcp", "192.0.2.1:80")
        known = outcome not in (Outcome.SUCCEEDED, Outcome.NO_AGENT, Outcome.OVERLOADED)
        assert outcome_of(text) is (outcome if known else Outcome.GENERAL_FAILURE)
    refused = error_text(Outcome.CONNECTION_REFUSED, "tcp", "127.0.0.1:1")
    recorded = [parse(wire) for _, wire in messages_of("p-anyproxy-dial-refused")]
    assert recorded[1][2] == refused
    denied = error_text(Outcome.NOT_ALLOWED, "tcp", "169.254.169.254:80")
    recorded = [parse(wire) for _, wire in messages_of("p-anyproxy-forbidden-host")]
    assert recorded[1][2] == denied
