"""Rules of an agent for its targets, by name, address and port. Pure.

A rule is a pattern of the Go program's `allowed_hosts` and `forbidden_hosts`:

    10.0.0.0/8  10.0.0.0/8:22  fe80::/10      addresses, all ports or one
    *:22  host:*  *.example.com  *.example.com:443  10.1.*:80      `*` is any text
    .example.com                                                   as *.example.com
    host  host:22  192.0.2.1  [2001:db8::1]:80                     exactly that
    ^db[0-9]+\\.example\\.com(:5432)?$          anything else: a regular expression

A target is denied if a forbidden pattern matches, or if there are allowed ones and none matches.
Each address that a name leads to is checked together with the name, so a name that leads to a
forbidden address is denied.

Case is ignored and patterns match as a whole: in Go, `127.0.0.1` also matches 1127.0.0.10, and
`example.com` also matches examplexcom and example.com.evil.net. A regular expression is matched
with `host` and with `host:port`: as a whole among the allowed patterns, anywhere among the
forbidden ones. Both err on the side of denying. `warnings` names expressions that are not
anchored with `^` and `$`.

A name has several spellings, and all are compared: as it was asked for, and in ASCII (IDNA, which
also turns full-width letters into plain ones). Forbidden patterns also see the addresses that
0.0.0.0 and :: lead to, those of loopback, and the IPv4 address that an IPv6 address embeds.

An allowed pattern of digits and dots, like `10.1.*`, is about addresses. It does not match names,
because 10.1.example.com may lead anywhere.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

from mtt.address import bracketed, parse_port, unmapped
from mtt.errors import UsageError
from mtt.options.flags import quoted

# Every connection and datagram searches the patterns one by one.
MAX_PATTERNS = 1000

_IS_REGEX = re.compile(r"[\^$\[\](){}+?|\\]")
# In a regular expression: constructs that are not literal characters, and a port at the end.
_REGEX_ESCAPE = re.compile(r"\\[A-Za-z]|\\(?=\W)")
_REGEX_PORT = re.compile(r"\(?(?:\?:)?:[^:A-Za-z]*$")
# A regular expression that is anchored at its end, or allows any end.
_IS_ANCHORED_END = re.compile(r"(?<!\\)(?:\\\\)*(?:\$|\.\*)$")
_ONE_IPV6 = re.compile(r"\[([0-9a-fA-F:.]+)\](?::(.+))?")

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: the last four bytes are IPv4

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
# Linux connects to this machine for an unspecified address.
_LOOPBACK: dict[_Address, _Address] = {
    ipaddress.ip_address("0.0.0.0"): ipaddress.ip_address("127.0.0.1"),
    ipaddress.ip_address("::"): ipaddress.ip_address("::1"),
}


class _Target(NamedTuple):
    """What a pattern is compared with."""

    names: tuple[str, ...]  # what was asked for, in all spellings; it may be an address
    addresses: tuple[_Address, ...]
    literals: tuple[str, ...]  # of the addresses
    port: int

    @property
    def hosts(self) -> tuple[str, ...]:
        return self.names + self.literals


def _spellings(host: str) -> tuple[str, ...]:
    """A name in lower case, without a final dot, in Unicode and in ASCII (A-labels)."""
    name = host.lower().removesuffix(".")
    if name.isascii() and "xn--" not in name:
        return (name,)
    found = {name: None}
    try:
        ascii_name = name.encode("idna").decode("ascii").lower().removesuffix(".")
        found[ascii_name] = None
        found[ascii_name.encode("ascii").decode("idna").lower()] = None
    except UnicodeError:
        pass  # the resolver uses the same codec, so it cannot resolve the name
    return tuple(found)


def _meanings(address: _Address) -> tuple[_Address, ...]:
    """An address, and another one that connections to it may reach."""
    other: _Address | None = _LOOPBACK.get(address)
    if isinstance(address, ipaddress.IPv6Address) and other is None:
        other = address.sixtofour
        if other is None and address in _NAT64:
            other = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return (address,) if other is None else (address, other)


_Matches = Callable[[_Target], bool]


class Pattern(NamedTuple):
    """One compiled pattern, with a warning if it means something else than in Go."""

    text: str
    matches: _Matches
    warning: str = ""


class HostRules:
    """The rules of an agent.

    Attributes:
        warnings: lines for the log about patterns that may not mean what their author thinks.
    """

    def __init__(self, allowed: Iterable[Pattern] = (), forbidden: Iterable[Pattern] = ()) -> None:
        self._allowed = tuple(allowed)
        self._forbidden = tuple(forbidden)
        self.warnings = tuple(
            pattern.warning for pattern in (*self._allowed, *self._forbidden) if pattern.warning
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HostRules) and self._texts == other._texts

    def __hash__(self) -> int:
        return hash(self._texts)

    @property
    def _texts(self) -> tuple[tuple[str, ...], ...]:
        return tuple(
            tuple(pattern.text for pattern in patterns)
            for patterns in (self._allowed, self._forbidden)
        )

    def allows(self, host: str, address: str, port: int) -> bool:
        """Whether `host`, which leads to the IP literal `address`, may be connected to."""
        return self.verdict(host, address, port)[0]

    def verdict(self, host: str, address: str, port: int) -> tuple[bool, str]:
        """The same, and the pattern that decides; "" if none does."""
        if not (self._allowed or self._forbidden):
            return True, ""
        addresses = _meanings(ipaddress.ip_address(unmapped(address).partition("%")[0]))
        target = _Target(_spellings(host), addresses, tuple(map(str, addresses)), port)
        for pattern in self._forbidden:
            if pattern.matches(target):
                return False, pattern.text
        dialled = target._replace(addresses=addresses[:1], literals=target.literals[:1])
        for pattern in self._allowed:
            if pattern.matches(dialled):
                return True, pattern.text
        return not self._allowed, ""


ALLOW_ALL = HostRules()


def parse_patterns(key: str, texts: Iterable[str], *, allow: bool) -> tuple[Pattern, ...]:
    """Compile patterns. `key` names their list in errors. Raises UsageError."""
    patterns = tuple(_parse(key, text, allow) for text in texts)
    if len(patterns) > MAX_PATTERNS:
        raise UsageError(f"{key}: {len(patterns)} patterns are too many; {MAX_PATTERNS} at most")
    return patterns


def _parse(key: str, text: str, allow: bool) -> Pattern:
    try:
        if not text:
            raise ValueError('empty; write "*" for every target')
        if "/" in text:
            return Pattern(text, _cidr(text))
        if _is_plain(text):
            return _plain(key, text, allow)
        return _regex(key, text, allow)
    except ValueError as error:
        raise UsageError(f"{key}: {quoted(text)}: {error}") from None


def _is_plain(text: str) -> bool:
    """Whether a pattern is a host or a glob. Go takes `.*` and `*.` for regular expressions."""
    if _ONE_IPV6.fullmatch(text):
        return True
    parts = text.split(":") if "*" in text else ()
    has_dot = any(part.startswith(".") or part.endswith(".") for part in parts)
    return not has_dot and _IS_REGEX.search(text) is None


def _cidr(text: str) -> _Matches:
    network, colon, port = text, "", ""
    if not _is_network(text):  # a colon may be part of IPv6
        network, colon, port = text.rpartition(":")
        if not _is_network(network):
            raise ValueError("not a range of IP addresses; write it like 10.0.0.0/8:22")
    wanted = _port(port) if colon else None
    return partial(_in_network, ipaddress.ip_network(network.strip("[]"), strict=False), wanted)


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text.strip("[]"), strict=False)
    except ValueError:
        return False
    return "/" in text


def _in_network(network: _Network, port: int | None, target: _Target) -> bool:
    return port in (None, target.port) and any(each in network for each in target.addresses)


def _plain(key: str, text: str, allow: bool) -> Pattern:
    """A host or a glob, with or without a port."""
    literal = _ONE_IPV6.fullmatch(text)
    if literal is not None:
        host, port = str(ipaddress.ip_address(literal[1])), literal[2]
    elif _is_address(text):
        host, port = str(ipaddress.ip_address(text)), None
    else:
        host, colon, rest = text.rpartition(":")
        host, port = (host, rest) if colon else (text, None)
        if ":" in host:
            raise ValueError("write an IPv6 address with a port like [2001:db8::1]:22")
        host = host.lower().removesuffix(".")
        if host.startswith("."):  # any name below it, as with cookies
            host = f"*{host}"
    wanted = _port(port) if port is not None else None
    warning = ""
    if "*" in host:
        parts = tuple(host.split("*"))
        return Pattern(text, partial(_is_glob, parts, wanted, allow and _is_numeric(host)))
    if not allow and port is None and not _is_address(host):
        warning = (
            f"{key}: {quoted(text)} forbids that host alone; add {quoted(f'*.{host}')} to forbid "
            "its subdomains, too"
        )
    return Pattern(text, partial(_is_host, host, wanted), warning)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_host(host: str, port: int | None, target: _Target) -> bool:
    return port in (None, target.port) and host in target.hosts


def _is_glob(
    parts: tuple[str, ...], port: int | None, only_addresses: bool, target: _Target
) -> bool:
    hosts = target.literals if only_addresses else target.hosts
    return port in (None, target.port) and any(_has_parts(parts, host) for host in hosts)


def _has_parts(parts: tuple[str, ...], host: str) -> bool:
    """Whether a host consists of these texts with any text between them; in linear time."""
    first, *others, last = parts
    at, end = len(first), len(host) - len(last)
    if at > end or not (host.startswith(first) and host.endswith(last)):
        return False
    for part in others:
        at = host.find(part, at, end) + len(part)
        if at < len(part):
            return False
    return True


def _is_numeric(pattern: str) -> bool:
    """Whether a pattern of hosts has digits and no letters, and so matches addresses."""
    return any(map(str.isdigit, pattern)) and not any(map(str.isalpha, pattern))


def _regex(key: str, text: str, allow: bool) -> Pattern:
    try:
        regex = re.compile(text, re.IGNORECASE)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"not a regular expression: {error}") from None
    is_anchored = text.startswith(("^", ".*")) and _IS_ANCHORED_END.search(text) is not None
    anchored = quoted(f"^{text.removeprefix('^').removesuffix('$')}$")
    warning = ""
    if not is_anchored and allow:
        warning = f"{key}: {quoted(text)} is not anchored; it matches as a whole, as {anchored}"
    elif not is_anchored:
        warning = (
            f"{key}: {quoted(text)} is not anchored and matches anywhere in a host; write "
            f"{anchored} to match it as a whole"
        )
    find = regex.fullmatch if allow else regex.search
    bare = _REGEX_PORT.sub("", _REGEX_ESCAPE.sub("", text))
    return Pattern(text, partial(_is_found, find, allow and _is_numeric(bare)), warning)


def _is_found(find: Callable[[str], object], only_addresses: bool, target: _Target) -> bool:
    hosts = target.literals if only_addresses else target.hosts
    return any(find(host) or find(f"{bracketed(host)}:{target.port}") for host in hosts)


def _port(text: str) -> int | None:
    """A port; None for `*`."""
    return None if text == "*" else parse_port(text)
