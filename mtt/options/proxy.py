"""The proxy between a client and its server: -proxy, and the environment variables."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import unquote

from mtt.address import Endpoint, is_ip, is_loopback
from mtt.errors import UsageError
from mtt.options.common import PROXY, host_name, reachable
from mtt.options.flags import Values

ENVIRONMENT = "env"  # the value of -proxy that stands for the variables
PROXY_VARIABLES = ("HTTPS_PROXY", "https_proxy")
EXCEPTION_VARIABLES = ("NO_PROXY", "no_proxy")

HTTP, HTTPS, SOCKS5 = "http", "https", "socks5"
# Names in other programs. Here the proxy always resolves the server's name.
_SCHEMES = {HTTP: HTTP, HTTPS: HTTPS, SOCKS5: SOCKS5, "socks5h": SOCKS5, "socks": SOCKS5}

# Bytes of a user or password at a SOCKS5 proxy (RFC 1929).
MAX_SOCKS_LOGIN = 255


@dataclass(frozen=True, slots=True)
class ProxyServer:
    """A proxy; `login` is user and password. For an HTTP proxy the user has no colon."""

    address: Endpoint
    login: tuple[str, str] | None = field(default=None, repr=False)
    option: str = f"-{PROXY.name}"  # where the user gave it, for errors
    scheme: str = HTTP  # HTTP, HTTPS (TLS to the proxy) or SOCKS5

    def __str__(self) -> str:
        return str(self.address)


class FromEnvironment(NamedTuple):
    """The value of `-proxy env`: the proxy, if any, and the value of NO_PROXY."""

    proxy: ProxyServer | None
    exceptions: str

# The proxy for connections to servers, if any.
Way = ProxyServer | FromEnvironment | None


def parse_proxy(option: str, text: str) -> ProxyServer:
    """The proxy in `http://user:password@host:port`; scheme and login may be missing.

    Other schemes are https, and socks5 or socks5h, which mean the same.

    User and password are percent-encoded. Raises UsageError, which does not show `text`: a
    password may be anywhere in it.
    """
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = HTTP, text
    kind = _SCHEMES.get(scheme.lower())
    if kind is None:
        raise UsageError(
            f"{option}: only HTTP and SOCKS5 proxies are supported; write http://host:port, "
            "https://host:port or socks5://host:port"
        )
    userinfo, at, authority = rest.removesuffix("/").rpartition("@")
    try:
        address = reachable(option, authority)
    except UsageError:
        raise UsageError(
            f"{option}: not like {kind}://host:3128 or {kind}://user:password@host:3128"
        ) from None
    if not at:
        return ProxyServer(address, None, option, kind)
    # Bytes that are not UTF-8 are sent as they are.
    user, _, password = (
        unquote(part, errors="surrogateescape") for part in userinfo.partition(":")
    )
    if not user:
        raise UsageError(f"{option}: the user has no name")
    if ":" in user and kind != SOCKS5:  # the password would begin there (RFC 7617, 2)
        raise UsageError(f"{option}: the user's name has a colon")
    if kind == SOCKS5 and max(map(_size, (user, password))) > MAX_SOCKS_LOGIN:
        raise UsageError(
            f"{option}: a user or password of more than {MAX_SOCKS_LOGIN} bytes, which SOCKS5 "
            "cannot carry"
        )
    return ProxyServer(address, (user, password), option, kind)


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogateescape"))


def with_environment(given: Values, environ: Mapping[str, str]) -> Values:
    """The options `given`, with the proxy of `environ` instead of `-proxy env`.

    Raises UsageError.
    """
    if given.get(PROXY.name) != ENVIRONMENT:
        return given
    return given | {PROXY.name: from_environment(environ)}


def from_environment(environ: Mapping[str, str]) -> FromEnvironment:
    """The proxy in the environment variables. Raises UsageError."""
    name, text = _first(PROXY_VARIABLES, environ)
    proxy = parse_proxy(name, text) if text else None
    return FromEnvironment(proxy, _first(EXCEPTION_VARIABLES, environ)[1])


def proxy_to(server: Endpoint, way: Way) -> ProxyServer | None:
    """The proxy for connections to `server`; None without one."""
    if not isinstance(way, FromEnvironment):
        return way
    if all(_is_exception(host, server.port, way.exceptions) for host in server.hosts):
        return None
    return way.proxy


def given_proxy(values: Values, server: Endpoint) -> ProxyServer | None:
    """The value of -proxy for connections to `server`; None without a proxy. Raises UsageError."""
    value: str | FromEnvironment = values[PROXY.name]
    if not value:
        return None
    if isinstance(value, FromEnvironment):
        return proxy_to(server, value)
    if value == ENVIRONMENT:  # embedded, where the program decides what it reads
        raise UsageError(f"-{PROXY.name}: {ENVIRONMENT} is for the commands; give an address")
    return parse_proxy(f"-{PROXY.name}", value)


def _first(names: tuple[str, ...], environ: Mapping[str, str]) -> tuple[str, str]:
    """The first of these variables that is not empty, and its value."""
    return next(((name, environ[name]) for name in names if environ.get(name)), ("", ""))


def _is_exception(host: str, port: int, exceptions: str) -> bool:
    """Whether NO_PROXY, or the host itself, asks for a direct connection; as in Go programs."""
    host = host_name("-s", host).lower()
    if host == "localhost" or is_loopback(host):
        return True
    return any(_matches(host, port, entry) for entry in re.split(r"[,\s]+", exceptions.lower()))


def _matches(host: str, port: int, entry: str) -> bool:
    """Whether an entry of NO_PROXY matches the host.

    An entry is `*`, an address, a network, a name with its subdomains, or `.name` for only the
    subdomains. A port may follow.
    """
    if entry == "*":
        return True
    found = re.fullmatch(r"(\[[^\[\]]*\]|[^:]*):([0-9]{1,5})", entry)
    if found:
        entry = found[1]
        if int(found[2]) != port:
            return False
    if is_ip(host):
        try:
            network = ipaddress.ip_network(entry.strip("[]"), strict=False)
        except ValueError:
            return False
        return ipaddress.ip_address(host) in network
    name = entry.removeprefix("*").removesuffix(".")
    return bool(name) and (host == name or host.endswith("." + name.removeprefix(".")))
