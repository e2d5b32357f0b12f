"""Trusted proxies, and the user's address that they send."""

from __future__ import annotations

from typing import Any

import pytest

from mtt.errors import UsageError
from mtt.options.trusted_proxies import MAX_HOPS, TrustedProxies, parse_trusted_proxies

PROXIES = parse_trusted_proxies("-trusted-proxies", "10.0.0.0/8, 192.0.2.1,2001:db8::/32,unix")


@pytest.mark.parametrize(
    "peer, is_trusted",
    [
        (("10.255.0.1", 5), True),
        (("192.0.2.1", 5), True),
        (("192.0.2.2", 5), False),
        (("::ffff:10.0.0.1", 5, 0, 0), True),
        (("2001:db8::7", 5, 0, 0), True),
        (("fe80::1%eth0", 5, 0, 2), False),
        ("", True),  # a unix socket's
        (b"\0name", True),
        (None, True),
    ],
)
def test_addresses_in_the_list_are_trusted(peer: Any, is_trusted: bool) -> None:
    assert PROXIES.trusts(peer) == is_trusted
    assert not TrustedProxies().trusts(peer)


@pytest.mark.parametrize(
    "peer, value, user",
    [
        # The last one that no trusted proxy wrote about another.
        ("10.0.0.1", "203.0.113.7", "203.0.113.7"),
        ("10.0.0.1", "198.51.100.9, 203.0.113.7", "203.0.113.7"),
        ("10.0.0.1", "203.0.113.7, 192.0.2.1, 10.9.9.9", "203.0.113.7"),
        # All are trusted: the first one.
        ("10.0.0.1", "10.1.1.1, 192.0.2.1", "10.1.1.1"),
        # Nothing before nonsense is believed.
        ("10.0.0.1", "203.0.113.7, unknown, 10.1.1.1", "10.1.1.1"),
        ("10.0.0.1", "203.0.113.7, unknown", None),
        # From an address outside the list.
        ("203.0.113.9", "198.51.100.9", None),
    ],
)
def test_user_is_the_last_untrusted_address(peer: str, value: str, user: str | None) -> None:
    found = PROXIES.user((peer, 4711), [("x-forwarded-for", value)])
    assert found == (None if user is None else (user, 0))


def test_only_the_last_proxies_of_a_long_way_are_looked_at() -> None:
    way = ["203.0.113.7", *(f"10.0.{number // 250}.{number % 250}" for number in range(2000))]
    found = PROXIES.user(("10.0.0.1", 4711), [("x-forwarded-for", ",".join(way))])
    assert found == (way[-MAX_HOPS], 0)


@pytest.mark.parametrize(
    "text, error",
    [
        ("", "'' is not a range"),
        ("10.0.0.0/8,", "'' is not a range"),
        ("proxy.example", "'proxy.example' is not a range"),
        ("10.0.0.0/33", "'10.0.0.0/33' is not a range"),
        ("10.0.0.1:80", "'10.0.0.1:80' is not a range"),
        ("10.1.2.3/8", "'10.1.2.3/8' is an address within 10.0.0.0/8; write the range"),
        (",".join(["10.0.0.0/8"] * 1001), "1001 entries are too many"),
    ],
)
def test_errors_name_the_entry(text: str, error: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_trusted_proxies("-trusted-proxies", text)
    assert str(raised.value).startswith(f"-trusted-proxies: {error}")
