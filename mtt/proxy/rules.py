"""Rules for a proxy's destinations, which keep a public proxy out of its operator's network. Pure.

A rule of -allow or -deny is `CIDR`, `CIDR:PORT` or `CIDR:FIRST-LAST`, with IPv6 in brackets if a
port follows: `192.0.2.0/24`, `10.0.0.1:53`, `[2001:db8::/32]:8000-8999`; `:25` is port 25 of every
address. The most specific matching rule decides, regardless of order: the longest prefix, then the
fewest ports, then -deny. Built-in rules deny special addresses (see _SPECIAL). Only an -allow or
-deny for the same or a smaller range overrides them: `-allow 10.1.0.0/16` opens that part of
10.0.0.0/8, and `-allow 0.0.0.0/0` opens none of it. A destination without a matching rule is
allowed.

An IPv6 address that embeds an IPv4 address must be allowed as both.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from mtt.address import parse_port
from mtt.errors import UsageError
from mtt.options.flags import quoted

# Every connection and datagram searches the rules one by one.
MAX_RULES = 1000

# Ranges that are not global unicast: IANA's special-purpose registries (RFC 6890). Documentation
# ranges are unassigned; dials to them would only time out.
_SPECIAL = (
    "0.0.0.0/8",  # "this network"; on Linux 0.0.0.0 is this machine
    "10.0.0.0/8",  # private (RFC 1918)
    "100.64.0.0/10",  # behind a carrier's NAT (RFC 6598)
    "127.0.0.0/8",  # loopback
    "169.254.0.0/16",  # link-local, and cloud metadata services with credentials
    "172.16.0.0/12",  # private
    "192.0.0.0/24",  # IETF protocol assignments
    "192.0.2.0/24",  # documentation
    "192.88.99.0/24",  # 6to4 relays, deprecated (RFC 7526)
    "192.168.0.0/16",  # private
    "198.18.0.0/15",  # benchmarks (RFC 2544)
    "198.51.100.0/24",  # documentation
    "203.0.113.0/24",  # documentation
    "224.0.0.0/4",  # multicast
    "240.0.0.0/4",  # reserved, and broadcast
    "::/16",  # unspecified, loopback, IPv4-compatible; but not NAT64, whose first half is 0064
    "64:ff9b:1::/48",  # local-use NAT64 (RFC 8215)
    "100::/64",  # discard-only
    "2001::/23",  # IETF protocol assignments: Teredo, ORCHID
    "2001:db8::/32",  # documentation
    "3fff::/20",  # documentation
    "5f00::/16",  # segment routing (RFC 9602)
    "fc00::/7",  # unique local (RFC 4193)
    "fe80::/10",  # link-local
    "fec0::/10",  # site-local, deprecated (RFC 3879)
    "ff00::/8",  # multicast
)

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: the last four bytes are IPv4
_EVERYWHERE = ("0.0.0.0/0", "::/0")
_ALL_PORTS = (0, 65535)

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_RULE = re.compile(
    r"(?:\[(?P<bracketed>[^\[\]]*)\]|(?P<bare>[^:\[\]]*))(?::(?P<ports>[0-9]+(?:-[0-9]+)?))?",
    re.ASCII,
)
_EXAMPLES = "write it like 192.0.2.0/24, 10.0.0.1:53 or [2001:db8::/32]:8000-8999"


class Rule(NamedTuple):
    """One range of destinations and its verdict."""

    allow: bool
    network: _Network
    ports: tuple[int, int] = _ALL_PORTS  # first and last
    built_in: bool = False

    def _sort_key(self) -> tuple[int, int, bool, bool]:
        """Sort the most specific rule first; among equals the user's, then those of -deny."""
        first, last = self.ports
        return -self.network.prefixlen, last - first, self.built_in, self.allow


# Network and mask as numbers, ports, verdict.
_Entry = tuple[int, int, int, int, bool]


@dataclass(frozen=True)
class Policy:
    """Decides which destinations are allowed: the user's `rules` besides the built-in ones."""

    rules: tuple[Rule, ...] = ()

    @cached_property
    def _entries(self) -> dict[int, list[_Entry]]:
        """All rules by IP version. The first match decides."""
        special = (Rule(False, ipaddress.ip_network(text), built_in=True) for text in _SPECIAL)
        entries: dict[int, list[_Entry]] = {4: [], 6: []}
        for rule in sorted((*self.rules, *special), key=Rule._sort_key):
            network = rule.network
            entries[network.version].append(
                (int(network.network_address), int(network.netmask), *rule.ports, rule.allow)
            )
        return entries

    def allows(self, host: str, port: int) -> bool:
        """Whether connections and datagrams to `port` of the IP literal `host` are allowed.

        Resolve a name first and pass the address that is connected to: a second lookup may differ.
        A host that is not an IP literal is denied.
        """
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address):
            if address.ipv4_mapped is not None:
                # Not a separate address: a socket sends such packets over IPv4.
                return self._allows(address.ipv4_mapped, port)
            embedded = address.sixtofour
            if embedded is None and address in _NAT64:
                embedded = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
            if embedded is not None and not self._allows(embedded, port):
                return False
        return self._allows(address, port)

    def _allows(self, address: _Address, port: int) -> bool:
        number = int(address)
        for network, mask, first, last, allow in self._entries[address.version]:
            if number & mask == network and first <= port <= last:
                return allow
        return True


DEFAULT_POLICY = Policy()


def parse_policy(allow: Iterable[str], deny: Iterable[str]) -> Policy:
    """Make the policy of the options -allow and -deny. Raises UsageError."""
    rules = tuple(
        rule
        for option, verdict, texts in (("-allow", True, allow), ("-deny", False, deny))
        for text in texts
        for rule in parse_rule(option, text, allow=verdict)
    )
    if len(rules) > MAX_RULES:
        raise UsageError(f"-allow, -deny: {len(rules)} rules are too many; {MAX_RULES} at most")
    return Policy(rules)


def parse_rule(option: str, text: str, *, allow: bool) -> Iterator[Rule]:
    """The rule in `text`, or one per IP version if it has only ports. Raises UsageError."""
    match = _RULE.fullmatch(text)
    if match is not None:
        host = match["bare"] if match["bracketed"] is None else match["bracketed"]
        ports = _ports(option, text, match["ports"])
    else:
        # IPv6 without a port needs no brackets. So 2001:db8::5 is an address; a port would need
        # brackets.
        host, ports = text, _ALL_PORTS
    if not host and match is not None and match["bracketed"] is None and match["ports"]:
        networks: Iterable[str] = _EVERYWHERE
    else:
        networks = (host,)
    for network in networks:
        yield Rule(allow, _network(option, text, network), ports)


def _network(option: str, text: str, cidr: str) -> _Network:
    try:
        network = ipaddress.ip_network(cidr, strict=False)
    except ValueError:
        raise UsageError(
            f"{option}: {quoted(text)} is not a range of IP addresses; {_EXAMPLES}"
        ) from None
    if network.network_address != ipaddress.ip_address(cidr.partition("/")[0]):
        raise UsageError(
            f"{option}: {quoted(text)} is an address within {network}; write {network} for all of "
            f"it, or the address alone"
        )
    if isinstance(network, ipaddress.IPv6Network):
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            raise UsageError(f"{option}: {quoted(text)} is IPv4; write it like {mapped}")
    return network


def _ports(option: str, text: str, ports: str | None) -> tuple[int, int]:
    if ports is None:
        return _ALL_PORTS
    first, dash, last = ports.partition("-")
    try:
        span = parse_port(first), parse_port(last if dash else first)
    except ValueError as error:
        raise UsageError(f"{option}: {quoted(text)}: {error}; {_EXAMPLES}") from None
    if span[0] > span[1]:
        raise UsageError(f"{option}: {quoted(text)} has its last port before the first one")
    return span
