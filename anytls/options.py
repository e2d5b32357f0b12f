"""The options of anytls-client and anytls-server: their tables, and the checked results.

Command-line options override the file of -config: option by option, for all servers of the file.
"""

from __future__ import annotations

from dataclasses import dataclass

from anytls.config import ClientFile, read_client, read_server
from anytls.fields import IGNORE_FINGERPRINT
from anytls.servers import ServerChoice, alpn_names, given_servers
from anytls.singbox import ENABLED
from mtt.address import is_loopback, parse_endpoint
from mtt.errors import UsageError
from mtt.log import logger
from mtt.options import anytls, common, tls
from mtt.options.flags import Flag, Group, Values, defaults, parse_duration, quoted
from mtt.options.process import process_flags
from mtt.proxy.rules import DEFAULT_POLICY, Policy, parse_policy
from mtt.trust.tls_options import ServerTls
from mtt.users.file import checked_user, read_users
from mtt.users.user import User
from mtt.wire import alpn

# The reference's default address.
DEFAULT_LOCAL = f"{common.LOOPBACK}:1080"
DEFAULT_BIND = "0.0.0.0:8443"

# As sing-box; RFC 4787 (4.3) requires at least two minutes of a NAT and recommends five.
DEFAULT_UDP_TIMEOUT = "5m"

# Options of a server's identity; with -disable-tls, those in a file are ignored. A file that
# requires client certificates contradicts -disable-tls, though.
_IDENTITY = ("cert", "key", "cert-dir")
_OF_TLS = ("cert", "key", "no-tls", "alpn", "tls-min")

# The name of the user with the password of -p.
DEFAULT_USER = "default"

# Bytes of a user's name or password in a login of SOCKS5 (RFC 1929).
MAX_LOGIN = 255

_ALPN = Flag("alpn", "str", "Names for ALPN, preferred one first, with commas between them.",
             "NAME,...", may_be_empty=True, group=Group.TRUST)  # fmt: skip
_MAX_CONNS = common.MAX_CONNS._replace(help="Maximum concurrent connections; 0 means unlimited.")
_LINK = common.LINK._replace(
    help="Print the configuration of a client, its password included, and exit: command line "
    "(command), URI (uri), sing-box outbound (sing-box), or all.",
    placeholder="all|command|uri|sing-box",
    choices=(common.LINK_ALL, "command", "uri", "sing-box"),
)
_NEWER_HTTP = ("h2", "h3")

CLIENT_FLAGS = (
    common.BIND._replace(
        help="Address for applications: SOCKS5, SOCKS4a and HTTP proxy on one port.",
        default=DEFAULT_LOCAL, may_be_empty=False, aliases=("l",),
    ),
    Flag("s", "str", "Address of the server, or its URI: anytls://PASSWORD@HOST:PORT/?sni=NAME. "
         "Other users of this machine can see the password in it.",
         "HOST:PORT|URI", group=Group.ADDRESSES),
    common.PROXY,
    anytls.PASSWORD,
    anytls.PASSWORD_FILE,
    Flag("config", "str", "Configuration file of sing-box or Xray (JSON): a whole configuration or "
         "the AnyTLS outbound alone. Command-line options override it.", "FILE", aliases=("c",),
         group=Group.CONFIGURATION),
    Flag(IGNORE_FINGERPRINT, "bool", "Accept a file of -config that asks for a browser's TLS "
         "handshake (utls, fingerprint). Observers see the handshake of OpenSSL instead.",
         weakens=True, group=Group.CONFIGURATION),
    Flag("user", "str", "User name that applications need to use the proxy.", "NAME",
         group=Group.ACCESS),
    Flag("user-password-file", "str", "File with the password of -user on one line.", "FILE",
         group=Group.ACCESS),
    Flag("n", "str", "Server name for SNI and certificate verification; the host of -s if not "
         "given. IP addresses are verified, but not sent.", "NAME", may_be_empty=True,
         aliases=("sni",), group=Group.TRUST),
    tls.SKIP_VERIFY._replace(aliases=("insecure",)),
    *tls.CLIENT_TLS_FLAGS,
    _ALPN,
    *anytls.POOL_FLAGS,
    common.TIMEOUT,
    _MAX_CONNS,
    common.METRICS,
    _LINK,
    common.QR,
    *process_flags(client=True),
)  # fmt: skip

SERVER_FLAGS = (
    common.BIND._replace(default=DEFAULT_BIND, may_be_empty=False, aliases=("l",)),
    anytls.PASSWORD,
    anytls.PASSWORD_FILE,
    Flag("users", "str", "File with the users instead of -p: name:password on each line, or JSON.",
         "FILE", group=Group.ACCESS),
    Flag("config", "str", "Configuration file of sing-box (JSON): a whole configuration or the "
         "AnyTLS inbound alone. Command-line options override it.", "FILE", aliases=("c",),
         group=Group.CONFIGURATION),
    anytls.PADDING_SCHEME,
    *tls.SERVER_TLS_FLAGS,
    _ALPN,
    common.FALLBACK._replace(help="Web site (plain HTTP) for clients without a valid password."),
    common.FALLBACK_PROXY_PROTOCOL._replace(
        help="Send the user's address to the web site of -fallback, in a PROXY protocol header."),
    common.TRUSTED_PROXIES._replace(
        help="Proxies in front of the server that send the user's address in a PROXY protocol "
        "header. List only these."),
    Flag("allow", "str", "Destinations to allow: 10.1.0.0/16, [fd00::1]:53, :8000-8999. Private "
         "and other special addresses are denied by default. The most specific rule decides.",
         "CIDR[:PORTS]", repeatable=True, weakens=True, group=Group.ACCESS),
    Flag("deny", "str", "Destinations to deny.", "CIDR[:PORTS]", repeatable=True,
         group=Group.ACCESS),
    common.TIMEOUT,
    Flag("udp-timeout", "duration", "Close UDP associations that carried no datagram for this "
         "long.",
         "DURATION", DEFAULT_UDP_TIMEOUT, group=Group.LIMITS),
    _MAX_CONNS,
    common.FAST_OPEN,
    common.METRICS,
    _LINK,
    Flag("link-user", "str", "With -link: name of the user, if there are several.", "NAME",
         group=Group.LINK),
    common.LINK_SERVER,
    common.QR,
    *process_flags(),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions(common.ServiceOptions):
    """The checked options of anytls-client."""

    users: tuple[User, ...] = ()  # of the local port; empty for no authentication
    servers: tuple[ServerChoice, ...]  # tried in order; at least one
    pool: anytls.PoolOptions = anytls.DEFAULT_POOL


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions(common.ServiceOptions):
    """The checked options of anytls-server."""

    users: tuple[User, ...]  # at least one
    users_file: str = ""  # their source, for reloading
    padding_scheme: bytes = b""  # empty for the default one
    tls: ServerTls | None  # None without TLS
    alpn_ignored: tuple[str, ...] = ()  # clients may offer these alone, but get no ALPN
    policy: Policy = DEFAULT_POLICY
    udp_timeout: float = parse_duration(DEFAULT_UDP_TIMEOUT)  # seconds


def client_options(given: Values, *, sockets: tuple[int, ...] = ()) -> ClientOptions:
    """The options of anytls-client, from those `given` of CLIENT_FLAGS. Reads the named files.

    `sockets` are descriptors to listen on instead of -b. Raises UsageError.
    """
    file = ClientFile({}, {}, ())
    if given.get("config"):
        file = read_client(given["config"], ignore_fingerprint=given.get(IGNORE_FINGERPRINT, False))
    elif given.get(IGNORE_FINGERPRINT):
        raise UsageError(f"-{IGNORE_FINGERPRINT}: only meaningful with -config; remove it")
    local = {key: value for key, value in file.local.items() if key == "b"}
    values = defaults(CLIENT_FLAGS) | local | file.pool | given
    bind = None if sockets else parse_endpoint("-b", values["b"])
    users = _local_users(values) or file.local.get("users", ())
    for user in users:
        if len(user.password.encode()) > MAX_LOGIN:
            raise UsageError(
                f"the password of the local user {quoted(user.name)} has more than {MAX_LOGIN} "
                "bytes, which SOCKS5 cannot carry; choose a shorter one"
            )
    if bind is not None and not users and not all(map(_is_own, bind.hosts)):
        logger.warning("-b: anyone who can reach %s can use the proxy; set -user, or listen on %s",
                       bind, common.LOOPBACK)  # fmt: skip
    return ClientOptions(
        bind=bind, sockets=sockets, users=users,
        servers=given_servers(given, file.servers, defaults(CLIENT_FLAGS)),
        pool=anytls.pool_options(values, given),
        **common.service_values(values),
    )


def server_options(given: Values, *, sockets: tuple[int, ...] = ()) -> ServerOptions:
    """The options of anytls-server, from those `given` of SERVER_FLAGS. Reads the named files.

    `sockets` are descriptors to listen on instead of -b. Raises UsageError.
    """
    file = read_server(given["config"]) if given.get("config") else {}
    if given.get("disable-tls"):
        file = {key: value for key, value in file.items() if key not in _OF_TLS}
    elif any(given.get(name) for name in _IDENTITY):
        # Certificate and key must come from the same source.
        file = {key: value for key, value in file.items() if key not in ("cert", "key", "no-tls")}
    values = defaults(SERVER_FLAGS) | file | given
    bind = None if sockets else parse_endpoint("-b", values["b"])
    no_tls: str = file.get("no-tls", "")
    if no_tls and "disable-tls" not in given:
        if bind is None or not all(map(_is_own, bind.hosts)):
            where = f"{bind} is" if bind is not None else "the socket of systemd may be"
            raise UsageError(
                f"{no_tls}: missing or not enabled, and {where} reachable from other machines; "
                f"add {ENABLED}, or -disable-tls if a proxy in front does TLS"
            )
        values["disable-tls"] = True
    if values["disable-tls"] and values["alpn"]:
        raise UsageError("-alpn needs TLS, which -disable-tls turns off; remove one")
    alpn, alpn_ignored = _server_alpn(values)
    return ServerOptions(
        bind=bind, sockets=sockets,
        users=_server_users(values, file.get("users", ())),
        users_file=values["users"] if given.get("users") else "",
        padding_scheme=anytls.given_scheme(values) or file.get("padding", b""),
        tls=tls.given_server_tls(values, alpn), alpn_ignored=alpn_ignored,
        policy=parse_policy(values["allow"], values["deny"]),
        udp_timeout=common.positive(values, "udp-timeout", DEFAULT_UDP_TIMEOUT),
        **common.service_values(values),
    )


def _server_alpn(values: Values) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The ALPN names of a server: those to select from, and those that are ignored.

    The fallback site speaks only HTTP/1.1, so a browser for which the server selects HTTP/2 could
    not show it. Raises UsageError.
    """
    names = alpn_names(values)
    ignored = tuple(name for name in names if name in _NEWER_HTTP)
    if ignored and isinstance(values["alpn"], str):
        raise UsageError(
            f"-alpn: {ignored[0]}: the web site that visitors see speaks HTTP/1.1; remove that name"
        )
    if ignored:
        logger.warning(
            "alpn: %s: not used: the web site that visitors see speaks HTTP/1.1", ", ".join(ignored)
        )
    return tuple(name for name in names if name not in ignored) or alpn.SITE, ignored


def _is_own(host: str) -> bool:
    return host == "localhost" or is_loopback(host)


def _local_users(values: Values) -> tuple[User, ...]:
    """The user of -user; empty without it."""
    neither = " for a proxy without a password"
    common.both_or_neither(values, "user", "user-password-file", neither)
    if not values["user"]:
        return ()
    password = anytls.read_password("-user-password-file", values["user-password-file"])
    return (checked_user("-user", values["user"], password),)


def _server_users(values: Values, of_file: tuple[User, ...]) -> tuple[User, ...]:
    """The users of the server; `of_file` are those of -config, used if no option names others."""
    # "users" of a file of -config are Users already.
    path = values["users"] if isinstance(values["users"], str) else ""
    password = anytls.given_password(values)
    if path and password:
        raise UsageError("-users and -p or -password-file exclude each other; remove one")
    if path:
        return read_users("-users", path)
    if password:
        return (User(DEFAULT_USER, password),)
    if not of_file:
        raise UsageError(
            "-p is missing: give the password in a file with -password-file, or -users, or -config"
        )
    return of_file
