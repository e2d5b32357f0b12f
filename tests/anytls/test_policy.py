"""Where a proxy may connect to."""

from __future__ import annotations

import ipaddress
import random

import pytest

from anytls.policy import DEFAULT_POLICY, MAX_RULES, parse_policy, parse_rule
from mtt.errors import UsageError

SPECIAL = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.8.8.8",
    "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.8", "192.0.2.1", "192.168.1.1",
    "198.18.0.1", "198.19.255.255", "224.0.0.251", "239.255.255.250", "240.0.0.1",
    "255.255.255.255",
    "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1",
    "2001:db8::1", "100::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "3fff::1", "5f00::1",
    "64:ff9b:1::1", "::127.0.0.1", "::8.8.8.8",
    "::ffff:127.0.0.1", "::ffff:7f00:1", "::ffff:10.0.0.1", "::ffff:169.254.169.254",
    "64:ff9b::127.0.0.1", "64:ff9b::a00:1", "2002:7f00:1::", "2002:c0a8:101::1", "2002:a00:1::1",
]  # fmt: skip
PUBLIC = [
    "8.8.8.8", "1.1.1.1", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0",
    "172.15.255.255", "172.32.0.0", "192.0.1.1", "192.169.0.0", "198.17.255.255", "198.20.0.0",
    "223.255.255.255", "2606:4700:4700::1111", "2001:4860:4860::8888", "2a00:1450::1",
    "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1",
]  # fmt: skip


@pytest.mark.parametrize("host", SPECIAL)
def test_the_operators_own_network_is_denied(host: str) -> None:
    assert not DEFAULT_POLICY.allows(host, 80)


@pytest.mark.parametrize("host", PUBLIC)
def test_the_internet_is_allowed(host: str) -> None:
    assert DEFAULT_POLICY.allows(host, 80)


@pytest.mark.parametrize("host", ["", "localhost", "example.com", "127.1", "0x7f000001", "[::1]"])
def test_what_is_no_address_is_denied(host: str) -> None:
    assert not DEFAULT_POLICY.allows(host, 80)


def test_ranges_of_pythons_own_registry() -> None:
    """Nothing that `ipaddress` takes for private, local or multicast gets through."""
    rng = random.Random(20)
    for _ in range(3000):
        v4 = ipaddress.IPv4Address(rng.getrandbits(32))
        v6 = ipaddress.IPv6Address((rng.getrandbits(16) << 112) | rng.getrandbits(112))
        for address in (v4, v6):
            if address.is_private or address.is_multicast or address.is_link_local:
                assert not DEFAULT_POLICY.allows(str(address), 443), address


def test_the_most_specific_rule_decides() -> None:
    policy = parse_policy(["10.1.0.0/16", "10.1.2.3"], ["10.1.2.0/24", "8.8.0.0/16"])
    assert policy.allows("10.1.0.1", 1)
    assert not policy.allows("10.1.2.1", 1)
    assert policy.allows("10.1.2.3", 1)
    assert not policy.allows("10.2.0.1", 1)
    assert not policy.allows("8.8.8.8", 1)
    assert policy.allows("8.9.8.8", 1)


def test_a_wide_allow_opens_nothing_special() -> None:
    policy = parse_policy(["0.0.0.0/0", "::/0"], [])
    assert not any(policy.allows(host, 80) for host in SPECIAL)
    assert parse_policy(["10.0.0.0/8"], []).allows("10.9.9.9", 1)
    assert parse_policy(["127.0.0.0/8", "::1"], []).allows("::1", 1)


def test_a_list_of_all_that_is_allowed() -> None:
    policy = parse_policy(["1.1.1.0/24"], ["0.0.0.0/0", "::/0"])
    assert policy.allows("1.1.1.1", 53)
    assert not policy.allows("8.8.8.8", 53)
    assert not policy.allows("2606:4700:4700::1111", 53)


def test_ports() -> None:
    policy = parse_policy(["127.0.0.1:53", "[::1]:8000-8002"], [":25", "8.8.8.8:0-1023"])
    assert policy.allows("127.0.0.1", 53)
    assert not policy.allows("127.0.0.1", 54)
    assert [port for port in range(7999, 8005) if policy.allows("::1", port)] == [8000, 8001, 8002]
    for host in ("1.2.3.4", "2606:4700::1"):
        assert policy.allows(host, 24)
        assert not policy.allows(host, 25)
    assert not policy.allows("8.8.8.8", 1023)
    assert policy.allows("8.8.8.8", 1024)


def test_fewer_ports_are_more_specific_and_deny_wins_a_tie() -> None:
    assert parse_policy(["1.2.3.4:80"], ["1.2.3.4"]).allows("1.2.3.4", 80)
    assert not parse_policy(["1.2.3.4"], ["1.2.3.4:80"]).allows("1.2.3.4", 80)
    assert not parse_policy(["1.2.3.4:80"], ["1.2.3.4:80"]).allows("1.2.3.4", 80)


def test_embedded_addresses_follow_the_rules_of_ipv4() -> None:
    policy = parse_policy(["10.0.0.1"], ["8.8.8.8"])
    for host in ("::ffff:10.0.0.1", "64:ff9b::10.0.0.1", "2002:a00:1::1"):
        assert policy.allows(host, 80)
    for host in ("::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1"):
        assert not policy.allows(host, 80)
    # Opening the IPv6 form does not open the IPv4 address behind it.
    assert not parse_policy(["64:ff9b::/96", "2002::/16"], []).allows("64:ff9b::a00:1", 80)


@pytest.mark.parametrize(
    ("text", "network", "ports"),
    [
        ("10.0.0.0/8", "10.0.0.0/8", (0, 65535)),
        ("10.0.0.1", "10.0.0.1/32", (0, 65535)),
        ("10.0.0.1:53", "10.0.0.1/32", (53, 53)),
        ("10.0.0.0/8:1-2", "10.0.0.0/8", (1, 2)),
        ("2001:db8::/32", "2001:db8::/32", (0, 65535)),
        ("2001:db8::5", "2001:db8::5/128", (0, 65535)),
        ("::", "::/128", (0, 65535)),
        ("::/0", "::/0", (0, 65535)),
        ("[::1]", "::1/128", (0, 65535)),
        ("[fd00::/8]:443", "fd00::/8", (443, 443)),
    ],
)
def test_rules(text: str, network: str, ports: tuple[int, int]) -> None:
    (rule,) = parse_rule("-allow", text, allow=True)
    assert (str(rule.network), rule.ports, rule.allow) == (network, ports, True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a range"),
        ("example.com", "not a range"),
        ("example.com:80", "not a range"),
        ("10.0.0.0/33", "not a range"),
        ("10.0.0.1/8", "write 10.0.0.0/8"),
        ("[2001:db8::1/32]:5", "write 2001:db8::/32"),
        ("10.0.0.0/8:", "not a range"),
        ("10.0.0.0/8:70000", "not a port"),
        ("10.0.0.0/8:9-1", "last port before"),
        ("10.0.0.0/8:http", "not a range"),
        ("[]:25", "not a range"),
        ("[10.0.0.1", "not a range"),
        ("::ffff:10.0.0.0/104", "is IPv4"),
        ("*", "not a range"),
        ("1" * 5000, "not a range"),
        (":" + "1" * 5000, "-deny"),
    ],
)
def test_bad_rules(text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_policy([], [text])
    assert str(caught.value).startswith("-deny: ")
    assert words in str(caught.value)
    assert len(str(caught.value)) < 400


def test_there_is_an_end_to_rules() -> None:
    with pytest.raises(UsageError, match="too many"):
        parse_policy(["1.2.3.4"] * (MAX_RULES + 1), [])
