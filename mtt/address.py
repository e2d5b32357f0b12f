"""Addresses in options: `host:port`, `[::1]:port`, and `a|b:port` for several hosts."""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, NamedTuple

from mtt.errors import UsageError
from mtt.wire.addresses import unbracketed

if TYPE_CHECKING:
    import asyncio

_ALL_IPV6, _ALL_IPV4 = "::", "0.0.0.0"
_END_OF_AUTHORITY = re.compile(r"[/?#]")  # of a URL (RFC 3986, 3.2)


class Endpoint(NamedTuple):
    """One port on one or more hosts; shadowsocks joins several server addresses with `|`.

    Hosts are names or IP literals without brackets; an empty host means all interfaces.
    """

    hosts: tuple[str, ...]
    port: int

    def __str__(self) -> str:
        return "|".join(bracketed(host) for host in self.hosts) + f":{self.port}"

    @property
    def host(self) -> str:
        """The first host, which is used as the server's name."""
        return self.hosts[0]


def is_ip(host: str) -> bool:
    """Whether `host` is an IPv4 or IPv6 literal (without brackets, a zone allowed)."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether `host`, an IP literal, can be reached only from this machine."""
    host = unmapped(host)
    return is_ip(host) and ipaddress.ip_address(host).is_loopback


def unmapped(host: str) -> str:
    """The IPv4 address in an IPv4-mapped IPv6 literal (RFC 4291, 2.5.5.2); other hosts unchanged.

    IPv6 sockets report IPv4 peers in that form.
    """
    if host[:7].lower() != "::ffff:" or not is_ip(host):
        return host
    address = ipaddress.ip_address(host)
    return str(getattr(address, "ipv4_mapped", None) or host)


def bracketed(host: str) -> str:
    """`host` as written before a port: IPv6 literals in brackets (RFC 3986, 3.2.2)."""
    return f"[{host}]" if ":" in host else host


def host_port(host: str, port: int) -> str:
    """`host:port` for logs, with IPv4-mapped addresses shown as IPv4."""
    return f"{bracketed(unmapped(host))}:{port}"


def user_name(host: str, port: int) -> str:
    """A user's `host:port` for logs; the host alone if a proxy in front does not know the port."""
    return host_port(host, port) if port else unmapped(host)


def peer_name(transport: asyncio.BaseTransport) -> str:
    """The peer of `transport`, for logs."""
    peer = transport.get_extra_info("peername")
    if isinstance(peer, tuple):
        return user_name(peer[0], peer[1])
    return "local socket"  # unix sockets of clients have no name


def ip_end(transport: asyncio.BaseTransport, name: str) -> tuple[str, int] | None:
    """IP literal, without a zone, and port of "peername" or "sockname"; None of a unix socket."""
    address = transport.get_extra_info(name)
    return (address[0].partition("%")[0], address[1]) if isinstance(address, tuple) else None


def _shown(text: str) -> str:
    """The user's text, shortened to fit a line."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


def parse_port(text: str) -> int:
    """A port number from 0 to 65535. Raises ValueError with a reason."""
    if not (text.isascii() and text.isdigit()) or int(text) > 65535:
        raise ValueError(f"{_shown(text)} is not a port number")
    return int(text)


def endpoint(hosts: str, port: str) -> Endpoint:
    """An `Endpoint` from a separate host list and port, as in SIP003.

    IPv6 hosts may be written without brackets here. Raises ValueError with a reason.
    """
    parsed = []
    for host in hosts.split("|"):
        host = host.strip()
        try:
            bare = unbracketed(host)
        except ValueError:
            inner = _shown(host[1:].removesuffix("]"))
            raise ValueError(f"{inner} is not an IPv6 address") from None
        if (":" in bare and not is_ip(bare)) or any(c in bare for c in " /@\\\0"):
            raise ValueError(f"{_shown(host)} is not a host")
        parsed.append(bare)
    return Endpoint(tuple(parsed), parse_port(port.strip()))


def parse_endpoint(option: str, text: str) -> Endpoint:
    """An `Endpoint` from `host:port`; `option` is named in errors.

    Raises UsageError: an IPv6 host must be in brackets, the port must be a number. Text that looks
    like a URL, or contains a user, is not shown, because it may contain a secret.
    """
    if "://" in text:
        raise UsageError(f"{option}: not a URL, but an address; write it like {_address_in(text)}")
    if "@" in text:
        raise UsageError(f"{option}: an address has no @ in it; write it like example.com:443")
    if text.startswith("-"):
        raise UsageError(
            f"{option}: {_shown(text)} looks like an option; give an address, like 127.0.0.1:8080"
        )
    hosts, colon, port = text.rpartition(":")
    if text.isascii() and text.isdigit():
        like = f"127.0.0.1:{text[:5]}"  # a port has five digits
        raise UsageError(f"{option}: {_shown(text)} has no host; write it like {like}")
    if text and (not colon or not port or port.endswith("]")):
        host = _shown(text.removesuffix(":"))[1:-1]
        example = "9100" if option == "-metrics" else "443"
        raise UsageError(f"{option}: {_shown(text)} has no port; write it like {host}:{example}")
    try:
        if not colon:
            raise ValueError("the port is missing")
        for host in hosts.split("|"):
            if ":" in host and not host.startswith("["):
                raise ValueError("put an IPv6 address in brackets")
        return endpoint(hosts, port)
    except ValueError as error:
        raise UsageError(
            f"{option}: {_shown(text)} is not host:port ({error}); "
            f"write it like 192.0.2.1:443, example.com:443 or [2001:db8::1]:443"
        ) from None


def _address_in(url: str) -> str:
    """The `host:port` in a URL if it has one, else an example."""
    scheme, _, rest = url.partition("://")
    authority = _END_OF_AUTHORITY.split(rest, maxsplit=1)[0].rpartition("@")[2]
    port = "80" if scheme.lower() in ("http", "ws") else "443"
    for text in (authority, f"{authority}:{port}"):
        hosts, _, given = text.rpartition(":")
        try:
            if hosts and (found := endpoint(hosts, given)).host:
                return str(found)
        except ValueError:
            continue
    return "example.com:443"


def overlap(one: Endpoint, other: Endpoint) -> bool:
    """Whether the system refuses to listen on both addresses."""
    if one.port != other.port or not one.port:
        return False
    for host in map(unmapped, one.hosts):
        for another in map(unmapped, other.hosts):
            if host.lower() == another.lower() or {host, another} & {"", _ALL_IPV6}:
                return True
            if {host, another} & {_ALL_IPV4} and not any(
                ":" in each for each in (host, another) if is_ip(each)
            ):
                return True
    return False
