"""Options of several commands: their table entries, and the checks of their values."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mtt.address import Endpoint, is_ip, parse_endpoint
from mtt.errors import UsageError
from mtt.options.flags import Flag, Group, Values, defaults, parse_duration, quoted
from mtt.options.process import part_of
from mtt.wire.addresses import unbracketed

if TYPE_CHECKING:
    from mtt.options.trusted_proxies import TrustedProxies

DEFAULT_TIMEOUT = "5m"
# RFC 4787, REQ-5: at least 2 minutes, and 5 recommended.
DEFAULT_UDP_TIMEOUT = "5m"
DEFAULT_PATH = "/"
LOOPBACK = "127.0.0.1"
PROXY_VERSIONS = ("v1", "v2")  # of the PROXY protocol
UNIX_PREFIX = "unix:"

# RFC 1035, 2.3.4: 63 octets per label, 253 characters in text form. Underscores are not valid in
# host names, but occur in DNS and in local networks.
_HOST_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*", re.ASCII | re.I)

# Options of several commands, defined once.
BIND = Flag("b", "str", "Address to listen on. An empty host means all interfaces.",
            "HOST:PORT", may_be_empty=True, group=Group.ADDRESSES)
BIND_UNIX = Flag("bind-unix", "str", "Unix socket to listen on instead of -b: a path, or @name "
                 "for an abstract socket.", "PATH|@NAME", may_be_empty=True, group=Group.ADDRESSES)
WSS = Flag("wss", "bool", "Use WebSocket over TLS, which web servers and CDNs can forward.",
           group=Group.MODE)
V2RAY = Flag("v2ray", "bool", "Connect to a server with v2ray-plugin, over WebSocket like -wss; "
             "with -mux, use its mux.", group=Group.MODE)
WSS_PATH = Flag("wss-path", "str", "Path of the WebSocket request.", "PATH",
                DEFAULT_PATH, secret=True, may_be_empty=True, group=Group.MODE)
FALLBACK = Flag("fallback", "str", "Web site (plain HTTP) that receives all requests that are not "
                "for the tunnel.", "HOST:PORT", group=Group.MODE)
PROXY_PROTOCOL = Flag("proxy-protocol", "str", "Send the user's address to the destination, in a "
                      "PROXY protocol header before the data of each connection.", "v1|v2",
                      choices=PROXY_VERSIONS, group=Group.USER)
FALLBACK_PROXY_PROTOCOL = Flag("fallback-proxy-protocol", "str", "Send the user's address to the "
                               "web site of -fallback, in a PROXY protocol header.", "v1|v2",
                               choices=PROXY_VERSIONS, group=Group.USER)
TRUSTED_PROXIES = Flag("trusted-proxies", "str", "Proxies in front of the server whose information "
                       "about the user's address is trusted: a PROXY protocol header, or with -wss "
                       "X-Forwarded-For or Forwarded. List only proxies that set these headers "
                       "themselves. unix trusts all clients of -bind-unix.", "CIDR,...",
                       group=Group.USER)
# Of servers that connect to fixed destinations.
USER_ADDRESS_FLAGS = (PROXY_PROTOCOL, FALLBACK_PROXY_PROTOCOL, TRUSTED_PROXIES)
MUX = Flag("mux", "bool", "Carry several connections over one tunnel connection.", group=Group.MODE)
MAX_CONNS = Flag("max-conns", "int", "Maximum concurrent connections, multiplexed streams "
                 "included; 0 means unlimited.", "N", "0", group=Group.LIMITS)
TIMEOUT = Flag("timeout", "duration", "Close connections that carried no data in either direction "
               "for this long.",
               "DURATION", DEFAULT_TIMEOUT, group=Group.LIMITS)
METRICS = Flag("metrics", "str", "Address of the metrics server: GET /metrics (Prometheus) and "
               "GET /healthz (liveness check). Without a host it listens on 127.0.0.1; unix:/path "
               "is a socket for the current user only.", "HOST:PORT", group=Group.OBSERVE)
FAST_OPEN = Flag("fast-open", "bool", "Use TCP Fast Open between client and server, where the "
                 "system supports it.", group=Group.PROCESS)
UDP = Flag("udp", "bool", "Carry UDP as well, between the client's -b and the server's -d. Both "
           "ends need it.", group=Group.MODE)
UDP_TIMEOUT = Flag("udp-timeout", "duration", "With -udp: idle timeout of a flow; at most 30s "
                   "before its first answer.", "DURATION", DEFAULT_UDP_TIMEOUT, group=Group.LIMITS)

LINK_ALL = "all"
LINK = Flag("link", "str", "Print the configuration of a client, passwords included, and exit: "
            "command line (command), plugin options (plugin), shadowsocks link (ss), shadowsocks "
            "link with v2ray-plugin for phones (v2ray), or all.", "all|command|plugin|ss|v2ray",
            choices=(LINK_ALL, "command", "plugin", "ss", "v2ray"), group=Group.LINK)
LINK_SERVER = Flag("link-server", "str", "With -link: address of the server for clients. The "
                   "default is the name in -cert, and the port of -b.", "HOST[:PORT]",
                   group=Group.LINK)
LINK_SS = Flag("link-ss", "str", "With -link: method and password of shadowsocks. A missing "
               "password is read from the variable SS_PASSWORD, or from the terminal.",
               "METHOD[:PASSWORD]", secret=True, group=Group.LINK)
QR = Flag("qr", "bool", "With -link: also draw a QR code.", group=Group.LINK)

PROXY = Flag("proxy", "str", "Proxy to the server (HTTP or SOCKS5); env: the proxy in HTTPS_PROXY, "
             "unless NO_PROXY matches. Other users of this machine can see a password in the "
             "process list.", "SCHEME://[USER:PASSWORD@]HOST:PORT|env", secret=True,
             group=Group.ADDRESSES)


def required(values: Values, name: str, what: str) -> str:
    """The text of the required option `name`; `what` completes the error "give ..."."""
    text: str = values[name]
    if not text:
        raise UsageError(f"-{name} is missing: give {what}")
    return text


def only_with(needed: str, values: Values, flags: Iterable[Flag]) -> None:
    """Raise UsageError if one of `flags` is not its default while `needed` is not set."""
    if values[needed]:
        return
    for flag in flags:
        if values.get(flag.name, "") not in ("", *defaults((flag,)).values()):
            raise UsageError(
                f"-{flag.name}: only meaningful with -{needed}; add -{needed} or remove it"
            )


def with_websocket(values: Values) -> Values:
    """`values` with -wss if -v2ray, which implies it, is set."""
    return values | {"wss": values["wss"] or values["v2ray"]}


def mode_name(*, wss: bool, v2ray: bool, mux: bool, anytls: bool = False) -> str:
    """The name of a mode, as in `mtt.modes`: `tls`, `wss`, `v2ray+mux` and so on."""
    parts = (("v2ray" if v2ray else "wss", wss), ("mux", mux), ("anytls", anytls))
    return "+".join(part for part, on in parts if on) or "tls"


def both_or_neither(values: Values, first: str, second: str, neither: str = "") -> None:
    """Raise UsageError if only one of two options is set; `neither` says what that is for."""
    for given, missing in ((first, second), (second, first)):
        if values[given] and not values[missing]:
            raise UsageError(f"-{given} needs -{missing}; give both, or neither{neither}")


def at_least(least: int, values: Values, name: str) -> Any:
    """The number of the option `name`. Raises UsageError if it is less than `least`."""
    value = values[name]
    if value < least:
        raise UsageError(f"-{name}: {value:g} is less than {least}")
    return value


def positive(values: Values, name: str, default: str) -> float:
    """The seconds of the option `name`. Raises UsageError unless positive."""
    seconds: float = values[name]
    if seconds <= 0:
        raise UsageError(f"-{name}: {seconds:g}s is not positive; the default is {default}")
    return seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceOptions:
    """The checked options that all services have."""

    bind: Endpoint | None  # None with bind_unix or sockets
    bind_unix: str = ""  # a path, "@name" for an abstract socket, or empty
    sockets: tuple[int, ...] = ()  # descriptors that listen already
    timeout: float = parse_duration(DEFAULT_TIMEOUT)  # seconds
    max_conns: int = 0  # 0 for no limit
    fast_open: bool = False
    fallback: Endpoint | None = None  # of servers: a web site
    metrics: Endpoint | None = None
    metrics_unix: str = ""  # a path
    # Only of servers. Versions of the PROXY protocol, or empty.
    proxy_protocol: str = ""
    fallback_proxy_protocol: str = ""
    trusted_proxies: TrustedProxies | None = None
    udp_time: float = 0.0  # idle timeout of UDP flows, seconds; 0 without -udp


def service_values(values: Values) -> dict[str, Any]:
    """The fields of ServiceOptions that every service reads alike. Raises UsageError."""
    if "fallback" in values:
        only_with("fallback", values, (FALLBACK_PROXY_PROTOCOL,))
    metrics, metrics_unix = metrics_address(values) if "metrics" in values else (None, "")
    site = values.get("fallback")
    return {
        "timeout": positive(values, "timeout", DEFAULT_TIMEOUT),
        "max_conns": part_of(at_least(0, values, "max-conns"), values),
        "fast_open": values.get("fast-open", False),
        "fallback": reachable("-fallback", site) if site else None,
        "metrics": metrics,
        "metrics_unix": metrics_unix,
        "proxy_protocol": values.get("proxy-protocol", ""),
        "fallback_proxy_protocol": values.get("fallback-proxy-protocol", ""),
        "trusted_proxies": _trusted_proxies(values.get("trusted-proxies", "")),
        "udp_time": _udp_time(values) if "udp" in values else 0.0,
    }


def _trusted_proxies(text: str) -> TrustedProxies | None:
    if not text:
        return None
    from mtt.options.trusted_proxies import parse_trusted_proxies  # plugins must start fast

    return parse_trusted_proxies("-trusted-proxies", text)


def _udp_time(values: Values) -> float:
    """The idle timeout of UDP flows; 0 without -udp. Raises UsageError."""
    only_with("udp", values, (UDP_TIMEOUT,))
    return positive(values, "udp-timeout", DEFAULT_UDP_TIMEOUT) if values["udp"] else 0.0


def bind_address(values: Values) -> tuple[Endpoint | None, str]:
    """The address a server listens on: exactly one of -b and -bind-unix."""
    path: str = values["bind-unix"]
    if not path:
        bind = required(
            values, "b", "the address to listen on, like -b 0.0.0.0:443, or use -bind-unix"
        )
        return parse_endpoint("-b", bind), ""
    if values["b"]:
        raise UsageError("-b and -bind-unix exclude each other; remove one")
    if path == "@" or "\0" in path:
        raise UsageError(f"-bind-unix: {quoted(path)} is neither a path nor @name")
    return None, path


def own_address(option: str, text: str) -> tuple[Endpoint | None, str]:
    """A listening address for monitoring or control: an endpoint, or the path of a unix socket.

    Raises UsageError. The caller checks whether other machines can reach the endpoint.
    """
    if text.startswith(UNIX_PREFIX):
        path = text.removeprefix(UNIX_PREFIX)
        if not path or path.startswith("@") or "\0" in path:
            # An abstract socket has no permissions: every user of the machine could open it.
            raise UsageError(
                f"{option}: {quoted(text)} has no path; write it like unix:/run/mtt.sock"
            )
        return None, path
    endpoint = parse_endpoint(option, text)
    # localhost always means this machine (RFC 6761, 6.3), whatever /etc/hosts or a resolver says.
    hosts = tuple(LOOPBACK if host == "localhost" else host for host in endpoint.hosts)
    return endpoint._replace(hosts=hosts), ""


def metrics_address(values: Values) -> tuple[Endpoint | None, str]:
    """The address of -metrics, as `own_address`; neither without it. Raises UsageError."""
    text: str = values["metrics"]
    if not text:
        return None, ""
    if text.isascii() and text.isdigit():
        text = ":" + text
    endpoint, path = own_address("-metrics", text)
    if endpoint is not None:
        # Unlike -b, the default is loopback, so that metrics are not public by accident.
        hosts = tuple(host or LOOPBACK for host in endpoint.hosts)
        endpoint = endpoint._replace(hosts=hosts)
    return endpoint, path


def reachable(option: str, text: str) -> Endpoint:
    """An endpoint to connect to, which requires hosts and a port other than 0."""
    endpoint = parse_endpoint(option, text)
    if not all(endpoint.hosts):
        raise UsageError(f"{option}: {quoted(text)} lacks a host; write it like example.com:443")
    if endpoint.port == 0:
        raise UsageError(f"{option}: {quoted(text)} has port 0; give one from 1 to 65535")
    for host in endpoint.hosts:
        host_name(option, host)
    return endpoint


def host_name(option: str, name: str) -> str:
    """The IP literal or ASCII host name for `name`, which may be in any script.

    It is used in SNI, the Host header and certificates, which cannot carry a zone, brackets, or
    the trailing dot of an absolute name (RFC 6066, section 3).
    """
    try:
        bare = unbracketed(name)
        if is_ip(bare):
            return bare.partition("%")[0]
        ascii_name = name if name.isascii() else name.encode("idna").decode("ascii")
    except ValueError:
        ascii_name = ""
    ascii_name = ascii_name.removesuffix(".")
    if not _HOST_NAME.fullmatch(ascii_name):
        raise UsageError(f"{option}: {quoted(name)} is neither a host name nor an IP address")
    return ascii_name
