"""Rules of an agent for its targets, by name, address and port. Pure.

A rule is a pattern of the Go program's `allowed_hosts` and `forbidden_hosts`:

    10.0.0.0/8  10.0.0.0/8:22  fe80::/10      addresses, all ports or one
    *:22  host:*  *.example.com  *.example.com:443  10.1.*:80      `*` is any text
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
_ONE_IPV6 = re.compile(r"\[([0-9a-fA-F:.]+)\](?::(.+))?")

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class _Target(NamedTuple):
    """What a pattern is compared with."""

    hosts: tuple[str, ...]  # the name in lower case, and the address
    address: ipaddress.IPv4Address | ipaddress.IPv6Address
    port: int

    @property
    def texts(self) -> tuple[str, ...]:
        """The hosts, each without and with the port."""
        return (*self.hosts, *(f"{bracketed(host)}:{self.port}" for host in self.hosts))


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
        literal = ipaddress.ip_address(unmapped(address).partition("%")[0])
        name = host.lower().removesuffix(".")
        target = _Target((name, str(literal)), literal, port)
        for pattern in self._forbidden:
            if pattern.matches(target):
                return False, pattern.text
        for pattern in self._allowed:
            if pattern.matches(target):
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
        if _IS_REGEX.search(text) is None or _ONE_IPV6.fullmatch(text):
            return _plain(key, text, allow)
        return _regex(key, text, allow)
    except ValueError as error:
        raise UsageError(f"{key}: {quoted(text)}: {error}") from None


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
    return port in (None, target.port) and target.address in network


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
    wanted = _port(port) if port is not None else None
    warning = ""
    if "*" in host:
        glob = re.compile(".*".join(map(re.escape, host.split("*"))), re.DOTALL)
        return Pattern(text, partial(_is_glob, glob, wanted))
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


def _is_glob(glob: re.Pattern[str], port: int | None, target: _Target) -> bool:
    return port in (None, target.port) and any(map(glob.fullmatch, target.hosts))


def _regex(key: str, text: str, allow: bool) -> Pattern:
    try:
        regex = re.compile(text, re.IGNORECASE)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"not a regular expression: {error}") from None
    is_anchored = text.startswith("^") and text.endswith("$") and not text.endswith("\\$")
    anchored = quoted(f"^{text.removeprefix('^').removesuffix('$')}$")
    warning = ""
    if not is_anchored and allow:
        warning = f"{key}: {quoted(text)} is not anchored; it matches as a whole, as {anchored}"
    elif not is_anchored:
        warning = (
            f"{key}: {quoted(text)} is not anchored and matches anywhere in a host; write "
            f"{anchored} to match it as a whole"
        )
    return Pattern(text, partial(_is_found, regex.fullmatch if allow else regex.search), warning)


def _is_found(find: Callable[[str], object], target: _Target) -> bool:
    return any(map(find, target.texts))


def _port(text: str) -> int | None:
    """A port; None for `*`."""
    return None if text == "*" else parse_port(text)
