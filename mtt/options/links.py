"""The configuration of clients: command line, plugin options and links.

    command    mtt-client -b 127.0.0.1:1080 -s example.com:443 -wss -pin sha256/...
    plugin     wss;pin=sha256/...                           `plugin_opts` of shadowsocks (SIP003)
    ss         ss://BASE64@example.com:443/?plugin=...#NAME  link of shadowsocks (SIP002)
    v2ray      the same with v2ray-plugin, for phones

The texts contain passwords. Only `trust_of` reads files.
"""

from __future__ import annotations

import re
import shlex
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from mtt.address import Endpoint, bracketed, endpoint, is_ip
from mtt.errors import UsageError
from mtt.options.common import LINK, PROXY, host_name
from mtt.options.flags import Flag, Group, Values, defaults, quoted
from mtt.trust.identity import Identity

if TYPE_CHECKING:
    from mtt.options.tunnel import ServerOptions
    from mtt.trust.tls_options import ServerTls

DEFAULT_PORT = 443
DEFAULT_LOCAL = "127.0.0.1:1080"

# The name of the plugin in links: shadowsocks clients look for a program of this name.
PLUGIN = "mtt-client"
V2RAY_PLUGIN = "v2ray-plugin"

# Methods of SIP022, whose links are not in Base64 (SIP002).
_PERCENT_ENCODED = "2022-"
_METHOD = re.compile(r"[a-z0-9-]+", re.I)

# Characters of a value of plugin options that need a backslash (SIP003), and spaces at its ends. =
# needs none in a value; in a JSON file, a backslash would need another one.
_SPECIAL = re.compile(r"[\\;]|^\s|\s$")

# Options that are not for clients, or are given by shadowsocks.
_NOT_FOR_PLUGINS = ("b", "s")
# Groups of options that depend on the machine.
_NOT_HANDED_ON = (Group.CONFIGURATION, Group.OBSERVE, Group.PROCESS, Group.LINK)


class Link(NamedTuple):
    """One form of a client's configuration."""

    kind: str  # a value of -link
    title: str
    text: str = ""
    missing: str = ""  # why there is none, and the fix


class Trust(NamedTuple):
    """How clients verify a server."""

    names: tuple[str, ...] = ()  # in its certificate
    # Pin and certificate are empty if a CA has issued the certificate.
    pin: str = ""
    certificate: str = ""  # PEM


class Login(NamedTuple):
    """Method and password of shadowsocks."""

    method: str
    password: str


def parse_login(option: str, text: str) -> Login:
    """The login in `METHOD[:PASSWORD]`; the password is empty if it is missing or `?`.

    Raises UsageError, which does not show the password.
    """
    method, _, password = text.partition(":")
    if not _METHOD.fullmatch(method):
        raise UsageError(f"{option}: not like chacha20-ietf-poly1305:PASSWORD")
    return Login(method.lower(), "" if password == "?" else password)


def trust_of(tls: ServerTls | None) -> Trust | None:
    """How clients verify a server with these options; None without TLS.

    Makes the certificate of `cert_dir` if it is not there yet. Raises MttError.
    """
    if tls is None:
        return None
    from mtt.trust.reload import server_tls

    identity = server_tls(tls).identity
    assert identity is not None
    return trust_in(identity, is_kept=bool(tls.cert_dir))


def trust_in(identity: Identity, *, is_kept: bool) -> Trust:
    """How clients verify a server of this identity.

    `is_kept`: whether a generated certificate survives a restart. Raises UsageError if not.
    """
    words = identity.words
    if not identity.path and not is_kept:
        raise UsageError(
            f"-{LINK.name}: the generated certificate, and so the pin, changes at each start; add "
            "-cert-dir, or -cert and -key"
        )
    if identity.path and not _is_self_signed(identity.pem):
        return Trust(words.names)
    if words.pin is None:
        raise UsageError(f"-{LINK.name}: the certificate's key has no pin; use another certificate")
    return Trust(words.names, words.pin, identity.pem.decode("ascii", "replace"))


def _is_self_signed(pem: bytes) -> bool:
    from cryptography import x509

    certificate = x509.load_pem_x509_certificate(pem)
    return certificate.issuer == certificate.subject


def server_address(text: str, trust: Trust | None, bind: Endpoint | None) -> Endpoint:
    """The server's address for clients.

    Args:
        text: `HOST[:PORT]` of -link-server; if empty, the first name in the certificate.
        trust: None without TLS.
        bind: where the server listens; its port is the default. None for a unix socket.

    Raises UsageError.
    """
    option = "-link-server"
    port = DEFAULT_PORT if bind is None or trust is None else bind.port or DEFAULT_PORT
    if not text:
        names = trust.names if trust is not None and not trust.pin else ()
        host = next((name for name in names if not name.startswith("*")), "")
        if not host:
            raise UsageError(
                f"{option} is missing: give the address of the server for clients, like "
                f"{option} example.com"
            )
        return Endpoint((host,), port)
    hosts, _, digits = text.rpartition(":")
    if not hosts or is_ip(text) or text.endswith("]"):
        hosts, digits = text, str(port)
    try:
        found = endpoint(hosts, digits)
    except ValueError as error:
        raise UsageError(f"{option}: {error}; write it like example.com:443") from None
    if not all(found.hosts) or not found.port:
        raise UsageError(f"{option}: {quoted(text)} lacks a host or a port")
    return Endpoint(tuple(host_name(option, host) for host in found.hosts), found.port)


def trust_values(trust: Trust | None, server: Endpoint) -> Values:
    """The options of a client that verifies the server: -pin, or -n if it has another name."""
    if trust is None:
        return {}
    if trust.pin:
        return {"pin": (trust.pin,)}
    if trust.names and not any(_matches(server.host, name) for name in trust.names):
        name = next((each for each in trust.names if not each.startswith("*")), "")
        return {"n": name or trust.names[0].replace("*", "www", 1)}
    return {}


def _matches(host: str, name: str) -> bool:
    """Whether a certificate's `name` is the host's (RFC 6125, 6.4.3)."""
    host, name = host.lower(), name.lower()
    return host == name or (name.startswith("*.") and host.partition(".")[2] == name[2:])


def client_values(
    server: ServerOptions | None,
    address: Endpoint,
    trust: Trust | None,
    *,
    path: str = "",
    udp: bool = False,
) -> Values:
    """The options of the client of a server.

    Args:
        server: the server's; None for the multi-user server.
        address: the server's, for clients.
        trust: None without TLS.
        path: of the WebSocket requests, percent-decoded; empty for that of `server`.
        udp: whether the multi-user server carries UDP.
    """
    local = f"127.0.0.1:{server.destination.port}" if server is not None else DEFAULT_LOCAL
    values: Values = {"b": local, "s": str(address), **trust_values(trust, address)}
    if server is None or server.wss:
        values["wss"] = True
        decoded = path or (server.wss_path if server is not None else "")
        values["wss-path"] = quote(decoded, safe="/!$&'()*+,;=:@", errors="surrogateescape")
    values["udp"] = udp if server is None else server.udp_time > 0
    if server is not None:
        values["mux"] = server.mux
        if server.anytls_password:
            values |= {"anytls": True, "p": server.anytls_password}
    return values


def own_values(flags: Sequence[Flag], values: Values) -> Values:
    """The options of a client without those that depend on its machine."""
    own = {flag.name for flag in flags if flag.group in _NOT_HANDED_ON}
    # A proxy belongs to the network of this machine, and its address may contain a password.
    own.add(PROXY.name)
    return {name: value for name, value in values.items() if name not in own}


# Formatting.


def command_line(program: str, flags: Sequence[Flag], values: Values) -> str:
    """The command line that sets `values`, for a POSIX shell."""
    words = [program]
    for flag, text in _texts(flags, values):
        if flag.kind == "bool":
            words.append(f"-{flag.name}" if text == "true" else f"-{flag.name}={text}")
        else:
            words += [f"-{flag.name}", text]
    return shlex.join(words)


def plugin_options(flags: Sequence[Flag], values: Values) -> str:
    """The option string that sets `values` in a plugin (SIP003)."""
    pieces = []
    for flag, text in _texts(flags, values):
        if flag.name not in _NOT_FOR_PLUGINS:
            pieces.append(flag.name if text == "true" else f"{flag.name}={_escaped(text)}")
    return ";".join(pieces)


def _texts(flags: Iterable[Flag], values: Values) -> Iterable[tuple[Flag, str]]:
    """Each value that is not its default, as written after its option."""
    for flag in flags:
        value = values.get(flag.name)
        if value is None or value == defaults((flag,))[flag.name]:
            continue
        for each in value if flag.repeatable else (value,):
            yield flag, _text(flag, each)


def _text(flag: Flag, value: Any) -> str:
    if flag.kind == "bool":
        return "true" if value else "false"
    if flag.kind == "duration":
        return f"{value:.9f}".rstrip("0").rstrip(".") + "s"
    return str(value)


def ss_link(login: Login, server: Endpoint, plugin: str, name: str = "") -> str:
    """The link of a shadowsocks server (SIP002).

    `plugin`: the plugin's name, and its options behind a semicolon.
    """
    if login.method.startswith(_PERCENT_ENCODED):
        user = f"{quote(login.method, safe='')}:{quote(login.password, safe='')}"
    else:
        raw = ":".join(login).encode("utf-8", "surrogateescape")
        user = urlsafe_b64encode(raw).decode("ascii").rstrip("=")
    link = f"ss://{user}@{bracketed(server.host)}:{server.port}"
    if plugin:
        link += f"/?plugin={_quoted(plugin)}"
    return link + (f"#{_quoted(name)}" if name else "")


def _quoted(text: str) -> str:
    return quote(text, safe="", errors="surrogateescape")


def tunnel_links(
    flags: Sequence[Flag], values: Values, server: Endpoint, login: Login | None
) -> list[Link]:
    """The configuration of a client of the tunnel, in all forms.

    Args:
        flags: those of mtt-client.
        values: its options.
        server: its address, the first host of which is in the link.
        login: of shadowsocks; None for no link.
    """
    options = plugin_options(flags, values)
    found = [
        Link("command", "Command line", command_line(PLUGIN, flags, values)),
        Link("plugin", "Plugin options (plugin_opts)", options),
    ]
    plugin = f"{PLUGIN};{options}" if options else PLUGIN
    foreign, missing = _v2ray_plugin(values, server)
    if login is None:
        missing = "add -link-ss with method and password of shadowsocks"
        return [*found, Link("ss", "", missing=missing), Link("v2ray", "", missing=missing)]
    found.append(Link("ss", "Shadowsocks link", ss_link(login, server, plugin, server.host)))
    text = ss_link(login, server, foreign, server.host)
    found.append(Link("v2ray", "Shadowsocks link with v2ray-plugin", text, missing))
    return found


def _v2ray_plugin(values: Values, server: Endpoint) -> tuple[str, str]:
    """The name and options of v2ray-plugin for the same server; else the error."""
    if not (values.get("wss") or values.get("v2ray")):
        return "", "v2ray-plugin speaks WebSocket; use -wss on the server"
    if any(values.get(name) for name in ("pin", "ca", "sv", "cert")):
        return "", (
            "v2ray-plugin on a phone trusts only the system's CAs; use a certificate of a public "
            "CA on the server"
        )
    # Its mux is on by default, and servers recognise it.
    options = {"host": values.get("n") or server.host, "path": values.get("wss-path") or "/"}
    pieces = [f"{key}={_escaped(value)}" for key, value in options.items()]
    return ";".join((V2RAY_PLUGIN, "tls", *pieces)), ""


def _escaped(value: str) -> str:
    """A value of plugin options."""
    return _SPECIAL.sub(r"\\\g<0>", value)
