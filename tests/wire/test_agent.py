"""Heads and answers of the streams between gateway and agent."""

import random

import pytest

from mtt.outcome import Outcome
from mtt.wire.agent import (
    MAX_SIZE,
    TCP,
    UDP,
    AgentError,
    Answer,
    Head,
    encode_message,
    parse_answer,
    parse_head,
    parse_message,
)

HEADS = {
    Head(TCP, "intra.example", 80): b"\x00\x12\x01\x03\x0dintra.example\x00\x50",
    Head(TCP, "192.0.2.1", 443): b"\x00\x08\x01\x01\xc0\x00\x02\x01\x01\xbb",
    Head(UDP, "0.0.0.0", 0): b"\x00\x08\x02\x01\x00\x00\x00\x00\x00\x00",
    Head(TCP, "NAS", 22, ("198.51.100.7", 4000)): (
        b"\x00\x11\x01\x03\x03NAS\x00\x16\x01\x07\x01\xc6\x33\x64\x07\x0f\xa0"
    ),
}
ANSWERS = {
    Answer(Outcome.SUCCEEDED, ("10.0.0.5", 80)): b"\x00\x08\x00\x01\x0a\x00\x00\x05\x00\x50",
    Answer(Outcome.SUCCEEDED): b"\x00\x01\x00",
    Answer(Outcome.CONNECTION_REFUSED): b"\x00\x01\x05",
    Answer(Outcome.UNRESOLVABLE): b"\x00\x01\x07",
}
CASES = [
    *((parse_head, value, wire) for value, wire in HEADS.items()),
    *((parse_answer, value, wire) for value, wire in ANSWERS.items()),
]


@pytest.mark.parametrize("parse, value, wire", CASES, ids=lambda case: repr(case)[:40])
def test_encoded_and_parsed_whole(parse, value, wire):
    assert value.encode() == wire
    assert parse(wire) == (value, len(wire))


@pytest.mark.parametrize("parse, value, wire", CASES, ids=lambda case: repr(case)[:40])
def test_every_prefix_is_incomplete(parse, value, wire):
    for size in range(len(wire)):
        assert parse(wire[:size]) is None


@pytest.mark.parametrize("parse, value, wire", CASES, ids=lambda case: repr(case)[:40])
def test_trailing_data_stays(parse, value, wire):
    assert parse(wire + b"GET / HTTP/1.1") == (value, len(wire))


def resized(wire, more):
    return (len(wire) - 2 + len(more)).to_bytes(2, "big") + wire[2:] + more


@pytest.mark.parametrize("parse, value, wire", CASES, ids=lambda case: repr(case)[:40])
def test_fields_of_unknown_types_are_ignored(parse, value, wire):
    if value == Answer(value.outcome if isinstance(value, Answer) else None):
        wire = wire[:3] + b"\x01\x00\x00\x00\x00\x00\x00"  # fields stand behind an address
        wire = resized(wire, b"")
        value = Answer(value.outcome, ("0.0.0.0", 0))
    later = resized(wire, b"\xfe\x03new\xff\x00")
    assert parse(later) == (value, len(later))


def test_names_keep_their_case():
    found = parse_head(Head(TCP, "Printer.Office", 9100).encode())
    assert found is not None
    assert found[0].host == "Printer.Office"


def test_results_of_later_versions_are_general_failures():
    assert parse_answer(b"\x00\x01\xc8") == (Answer(Outcome.GENERAL_FAILURE), 3)


@pytest.mark.parametrize("outcome", Outcome)
def test_every_outcome_can_be_answered(outcome):
    found = parse_answer(Answer(outcome).encode())
    assert found is not None
    assert found[0].outcome is outcome


@pytest.mark.parametrize(
    "parse, wire, text",
    [
        (parse_head, b"\x00\x00", "0 bytes"),
        (parse_head, b"\xff\xff", "65535 bytes"),
        (parse_head, (MAX_SIZE + 1).to_bytes(2, "big"), "1 to 1024"),
        (parse_head, b"\x00\x08\x03\x01\xc0\x00\x02\x01\x01\xbb", "unknown network 3"),
        (parse_head, b"\x00\x04\x01\x01\xc0\x00", "an address is cut short"),
        (parse_head, b"\x00\x03\x01\x09\xc0", "unknown address type 9"),
        (parse_head, b"\x00\x05\x01\x03\x00\x00\x50", "an empty domain name"),
        (parse_head, b"\x00\x09\x01\x01\xc0\x00\x02\x01\x01\xbb\x01", "a field is cut short"),
        (parse_head, b"\x00\x0b\x01\x01\xc0\x00\x02\x01\x01\xbb\x01\x05x", "a field is cut short"),
        (parse_head, b"\x00\x0b\x01\x01\xc0\x00\x02\x01\x01\xbb\x01\x01\x01", "cut short"),
        (parse_answer, b"\x00\x00", "0 bytes"),
        (parse_answer, b"\x04\x01", "1025 bytes"),
        (parse_answer, b"\x00\x02\x00\x01", "an address is cut short"),
    ],
)
def test_malformed_input_is_refused(parse, wire, text):
    with pytest.raises(AgentError, match=text):
        parse(wire)


@pytest.mark.parametrize("host", ["", "a b", "x" * 256, "a\nb"])
def test_hosts_that_cannot_be_encoded_are_refused(host):
    with pytest.raises(ValueError):
        Head(TCP, host, 80).encode()


def test_messages_are_framed_json_objects():
    wire = encode_message({"drain": True, "port": 22})
    assert wire == b'\x00\x18{"drain":true,"port":22}'
    assert parse_message(wire + b"\x00\x02{}") == ({"drain": True, "port": 22}, len(wire))
    for size in range(len(wire)):
        assert parse_message(wire[:size]) is None


@pytest.mark.parametrize(
    "text", [b"", b"[1]", b"{", b"\xff", b"[" * 60000, b'"a"'], ids=lambda text: repr(text)[:10]
)
def test_messages_that_are_no_json_objects_are_refused(text):
    with pytest.raises(AgentError, match="a message is not"):
        parse_message(len(text).to_bytes(2, "big") + text)


def test_messages_that_are_too_long_are_refused():
    with pytest.raises(ValueError, match="65535 at most"):
        encode_message({"a": "x" * 65536})


def test_random_input_never_escapes_the_error_family():
    chance = random.Random(1)
    pool = [wire for *_, wire in CASES]
    for _ in range(3000):
        data = bytearray(chance.choice(pool))
        for _ in range(chance.randrange(4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        for parse in (parse_head, parse_answer):
            try:
                found = parse(bytes(data))
            except AgentError:
                continue
            assert found is None or found[1] <= len(data)
