"""Rules for a proxy's destinations."""

from __future__ import annotations

import ipaddress
import random

import pytest

from mtt.errors import UsageError
from mtt.proxy import rules
from mtt.proxy.rules import DEFAULT_POLICY, MAX_RULES, parse_policy, parse_rule

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
def test_operators_network_is_denied(host: str) -> None:
    assert not DEFAULT_POLICY.allows(host, 80)


@pytest.mark.parametrize("host", PUBLIC)
def test_internet_is_allowed(host: str) -> None:
    assert DEFAULT_POLICY.allows(host, 80)


@pytest.mark.parametrize("host", ["", "localhost", "example.com", "127.1", "0x7f000001", "[::1]"])
def test_names_and_malformed_addresses_are_denied(host: str) -> None:
    assert not DEFAULT_POLICY.allows(host, 80)


# First and last address of each range that is special.
SPECIAL_RANGES = [
    ("0.0.0.0", "0.255.255.255"),
    ("10.0.0.0", "10.255.255.255"),
    ("100.64.0.0", "100.127.255.255"),
    ("127.0.0.0", "127.255.255.255"),
    ("169.254.0.0", "169.254.255.255"),
    ("172.16.0.0", "172.31.255.255"),
    ("192.0.0.0", "192.0.0.255"),
    ("192.0.2.0", "192.0.2.255"),
    ("192.88.99.0", "192.88.99.255"),
    ("192.168.0.0", "192.168.255.255"),
    ("198.18.0.0", "198.19.255.255"),
    ("198.51.100.0", "198.51.100.255"),
    ("203.0.113.0", "203.0.113.255"),
    ("224.0.0.0", "239.255.255.255"),
    ("240.0.0.0", "255.255.255.255"),
    ("::", "0:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ("64:ff9b:1::", "64:ff9b:1:ffff:ffff:ffff:ffff:ffff"),
    ("100::", "100::ffff:ffff:ffff:ffff"),
    ("2001::", "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ("2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"),
    ("3fff::", "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ("5f00::", "5f00:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ("fc00::", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ("fe80::", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ("fec0::", "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ("ff00::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
]
_LIMITS = {address for limits in SPECIAL_RANGES for address in limits}


@pytest.mark.parametrize(("first", "last"), SPECIAL_RANGES)
def test_special_ranges_are_denied_to_their_limits(first: str, last: str) -> None:
    limits = ipaddress.ip_address(first), ipaddress.ip_address(last)
    for port in (0, 80, 65535):
        assert not DEFAULT_POLICY.allows(first, port)
        assert not DEFAULT_POLICY.allows(last, port)
    space = type(limits[0])
    for outside in (int(limits[0]) - 1, int(limits[1]) + 1):
        if 0 <= outside < 1 << limits[0].max_prefixlen and str(space(outside)) not in _LIMITS:
            assert DEFAULT_POLICY.allows(str(space(outside)), 80)


def test_list_of_special_ranges_is_complete() -> None:
    """Every range that is denied by default is listed above."""
    ranges = [
        network
        for first, last in SPECIAL_RANGES
        for network in ipaddress.summarize_address_range(
            ipaddress.ip_address(first), ipaddress.ip_address(last)
        )
    ]
    assert sorted(map(str, ranges)) == sorted(rules._SPECIAL)


def test_ranges_that_ipaddress_calls_private_are_denied() -> None:
    """No address that `ipaddress` calls private, local or multicast is allowed."""
    rng = random.Random(20)
    for _ in range(3000):
        v4 = ipaddress.IPv4Address(rng.getrandbits(32))
        v6 = ipaddress.IPv6Address((rng.getrandbits(16) << 112) | rng.getrandbits(112))
        for address in (v4, v6):
            if address.is_private or address.is_multicast or address.is_link_local:
                assert not DEFAULT_POLICY.allows(str(address), 443), address


def test_most_specific_rule_decides() -> None:
    policy = parse_policy(["10.1.0.0/16", "10.1.2.3"], ["10.1.2.0/24", "8.8.0.0/16"])
    assert policy.allows("10.1.0.1", 1)
    assert not policy.allows("10.1.2.1", 1)
    assert policy.allows("10.1.2.3", 1)
    assert not policy.allows("10.2.0.1", 1)
    assert not policy.allows("8.8.8.8", 1)
    assert policy.allows("8.9.8.8", 1)


def test_wide_allow_keeps_special_ranges_denied() -> None:
    policy = parse_policy(["0.0.0.0/0", "::/0"], [])
    assert not any(policy.allows(host, 80) for host in SPECIAL)
    assert parse_policy(["10.0.0.0/8"], []).allows("10.9.9.9", 1)
    assert parse_policy(["127.0.0.0/8", "::1"], []).allows("::1", 1)


def test_deny_all_with_exceptions() -> None:
    policy = parse_policy(["1.1.1.0/24"], ["0.0.0.0/0", "::/0"])
    assert policy.allows("1.1.1.1", 53)
    assert not policy.allows("8.8.8.8", 53)
    assert not policy.allows("2606:4700:4700::1111", 53)


def test_rules_with_ports() -> None:
    policy = parse_policy(["127.0.0.1:53", "[::1]:8000-8002"], [":25", "8.8.8.8:0-1023"])
    assert policy.allows("127.0.0.1", 53)
    assert not policy.allows("127.0.0.1", 54)
    assert [port for port in range(7999, 8005) if policy.allows("::1", port)] == [8000, 8001, 8002]
    for host in ("1.2.3.4", "2606:4700::1"):
        assert policy.allows(host, 24)
        assert not policy.allows(host, 25)
    assert not policy.allows("8.8.8.8", 1023)
    assert policy.allows("8.8.8.8", 1024)


def test_fewer_ports_win_and_deny_wins_a_tie() -> None:
    assert parse_policy(["1.2.3.4:80"], ["1.2.3.4"]).allows("1.2.3.4", 80)
    assert not parse_policy(["1.2.3.4"], ["1.2.3.4:80"]).allows("1.2.3.4", 80)
    assert not parse_policy(["1.2.3.4:80"], ["1.2.3.4:80"]).allows("1.2.3.4", 80)


@pytest.mark.parametrize(
    ("few", "many", "port"),
    [
        (":60000", "", 60000),
        (":65535", "", 65535),
        (":0", "", 0),
        (":60000", ":60000-60001", 60000),
        (":60000-60001", ":1-3", 60000),  # do not overlap
        (":60000-60001", ":59999-60001", 60001),
        (":60000-60009", ":1-60000", 60000),
        (":1-10", ":10-65535", 10),
        (":1-65535", "", 60000),
        (":0-65534", "", 60000),
    ],
)
def test_port_numbers_do_not_affect_specificity(few: str, many: str, port: int) -> None:
    host = "10.0.0.1"
    assert parse_policy([host + few], [host + many]).allows(host, port)
    assert not parse_policy([host + many], [host + few]).allows(host, port)


def test_prefix_length_counts_before_ports() -> None:
    assert parse_policy(["10.0.0.1"], ["10.0.0.0/31:60000"]).allows("10.0.0.1", 60000)
    assert not parse_policy(["10.0.0.0/31:60000"], ["10.0.0.1"]).allows("10.0.0.1", 60000)


def test_embedded_addresses_follow_ipv4_rules() -> None:
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
def test_parsed_rules(text: str, network: str, ports: tuple[int, int]) -> None:
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
def test_rejected_rules(text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_policy([], [text])
    assert str(caught.value).startswith("-deny: ")
    assert words in str(caught.value)
    assert len(str(caught.value)) < 400


def test_number_of_rules_is_limited() -> None:
    assert len(parse_policy(["1.2.3.4"] * (MAX_RULES - 1), ["8.8.8.8"]).rules) == MAX_RULES
    with pytest.raises(UsageError, match="too many"):
        parse_policy(["1.2.3.4"] * MAX_RULES, ["8.8.8.8"])
