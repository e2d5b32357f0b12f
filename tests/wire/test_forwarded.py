"""X-Forwarded-For and Forwarded, with the examples of RFC 7239."""

from __future__ import annotations

import pytest

from mtt.wire import forwarded
from mtt.wire.forwarded import Address, forwarded_for


@pytest.mark.parametrize(
    "value, addresses",
    [
        ("203.0.113.7", [("203.0.113.7", 0)]),
        ("203.0.113.7, 192.0.2.1 ,2001:db8::1",
         [("203.0.113.7", 0), ("192.0.2.1", 0), ("2001:db8::1", 0)]),
        ("203.0.113.7:4711", [("203.0.113.7", 4711)]),
        ("[2001:db8::7]:4711, [2001:db8::8]", [("2001:db8::7", 4711), ("2001:db8::8", 0)]),
        ("::ffff:203.0.113.7", [("203.0.113.7", 0)]),
        ("unknown, 192.0.2.1", [None, ("192.0.2.1", 0)]),
        ("", [None]),
        (",", [None, None]),
        ("203.0.113.7:65536", [None]),
        ("203.0.113.7:", [None]),
        ("[203.0.113.7", [None]),
        ("fe80::1%eth0", [None]),
        ("203.0.113.007", [None]),
    ],
)  # fmt: skip
def test_x_forwarded_for(value: str, addresses: list[Address | None]) -> None:
    assert list(forwarded_for([("x-forwarded-for", value)])) == addresses[::-1]


@pytest.mark.parametrize(
    "value, addresses",
    [
        ('for="_gazonk"', [None]),
        ('For="[2001:db8:cafe::17]:4711"', [("2001:db8:cafe::17", 4711)]),
        ("for=192.0.2.60;proto=http;by=203.0.113.43", [("192.0.2.60", 0)]),
        ("for=192.0.2.43, for=198.51.100.17", [("192.0.2.43", 0), ("198.51.100.17", 0)]),
        ('proto=https ; for="192.0.2.43:80" ,by=1.2.3.4', [("192.0.2.43", 80), None]),
        (r'for="\1\92.0.2.43"', [("192.0.2.43", 0)]),
        ('for="192.0.2.43, for=198.51.100.17"', [None]),  # one quoted value
        ("for=192.0.2.43, for=unknown", [("192.0.2.43", 0), None]),
        # What cannot be split reliably is not believed.
        ('for=192.0.2.43, for="198.51.100.17', [("192.0.2.43", 0), None]),
        ("nonsense", [None]),
        ("", [None]),
    ],
)
def test_forwarded(value: str, addresses: list[Address | None]) -> None:
    assert list(forwarded_for([("forwarded", value)])) == addresses[::-1]


def test_several_lines_are_one_list() -> None:
    headers = [("x-forwarded-for", "203.0.113.7"), ("host", "a"), ("x-forwarded-for", "192.0.2.1")]
    assert list(forwarded_for(headers)) == [("192.0.2.1", 0), ("203.0.113.7", 0)]


def test_x_forwarded_for_ranks_above_forwarded() -> None:
    headers = [("forwarded", "for=203.0.113.7"), ("x-forwarded-for", "192.0.2.1")]
    assert list(forwarded_for(headers)) == [("192.0.2.1", 0)]


def test_without_headers_nothing_is_known() -> None:
    assert list(forwarded_for([("host", "a")])) == []


@pytest.mark.parametrize("name", ["x-forwarded-for", "forwarded"])
def test_addresses_are_parsed_one_by_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = []
    monkeypatch.setattr(forwarded, "_address", parsed.append)
    next(forwarded_for([(name, "," * 32_000)]))
    assert parsed == [""]
