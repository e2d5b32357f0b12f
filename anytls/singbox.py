"""Objects of sing-box's configuration: the AnyTLS inbound and outbound, and the local port.

Field names: https://sing-box.sagernet.org/configuration/, up to 1.13. The result is values of this
program's options, by name; errors and warnings name the key in the file.
"""

from __future__ import annotations

from anytls import fields
from anytls.json_file import Section
from mtt.address import host_port, parse_endpoint
from mtt.errors import UsageError
from mtt.options.anytls import checked_min_idle, checked_scheme
from mtt.options.common import host_name
from mtt.options.flags import Values
from mtt.trust.pem import PemSource

# Types of inbounds whose clients the local port can serve.
LOCAL_TYPES = ("mixed", "socks", "http")

ENABLED = '"tls": {"enabled": true}'

# The default of sing-box (common/listener).
_LISTEN = "127.0.0.1"

_OTHER_WAY = "connections follow the system's routes; remove it, or use sing-box"
_TUNING = "not adjustable"
_RESOLVER = "the system's resolver looks up names"
_ROUTING = "routing rules are not supported"

# Listen and dial fields that change the route of packets, and so their exposure. They are refused,
# because ignoring them would be unsafe.
_NETWORK = dict.fromkeys(("bind_interface", "routing_mark", "netns", "detour"), _OTHER_WAY)
_SOURCE = dict.fromkeys(("inet4_bind_address", "inet6_bind_address"), _OTHER_WAY)
_KEEP_ALIVE = dict.fromkeys(
    ("disable_tcp_keep_alive", "tcp_keep_alive", "tcp_keep_alive_interval", "tcp_keep_alive_count",
     "tcp_multi_path", "udp_fragment", "reuse_addr"),
    _TUNING,
)  # fmt: skip

_DIAL_REFUSED = _NETWORK | _SOURCE | {
    "tcp_fast_open": fields.NO_CLIENT_FAST_OPEN,
    "multiplex": fields.NO_MUX,
    "transport": "AnyTLS has no transport but TLS; remove it",
}
_DIAL_IGNORED = _KEEP_ALIVE | dict.fromkeys(
    ("connect_timeout", "fallback_delay", "bind_address_no_port", "network_strategy",
     "network_type", "fallback_network_type"),
    _TUNING,
) | dict.fromkeys(("domain_resolver", "domain_strategy"), _RESOLVER)  # fmt: skip
_LISTEN_IGNORED = _KEEP_ALIVE | dict.fromkeys(
    ("sniff", "sniff_override_destination", "sniff_timeout"), _ROUTING
) | {"udp_disable_domain_unmapping": _TUNING, "domain_strategy": _RESOLVER}  # fmt: skip
_TLS_REFUSED = {
    "cipher_suites": fields.NO_CHOICE,
    "curve_preferences": fields.NO_CHOICE,
    "ech": fields.NO_ECH,
    "reality": fields.NO_REALITY,
}
_OUTBOUND_TLS_REFUSED = _TLS_REFUSED | {
    "fragment": "the TLS handshake is sent in one piece; remove it",
    "record_fragment": "the TLS handshake is sent in one piece; remove it",
}
_INBOUND_TLS_REFUSED = _TLS_REFUSED | {
    "acme": "ACME is not supported; let certbot or acme.sh obtain the certificate, and give "
    "certificate_path and key_path",
    "certificate_provider": "not supported; give certificate_path and key_path",
    "client_certificate_public_key_sha256": "the keys of clients cannot be pinned; give "
    "client_certificate_path",
}
_TLS_IGNORED = dict.fromkeys(("kernel_tx", "kernel_rx"), "TLS is not done by the kernel here")

_IDLE_TIMES = {
    "idle_session_check_interval": "idle-check", "idle_session_timeout": "idle-timeout",
}  # fmt: skip
_CLIENT_AUTHENTICATION = {"": False, "no": False, "require-and-verify": True}


def outbound(section: Section) -> Values:
    """A server for the client, and the settings of its session pool.

    Keys: "server" (an Endpoint), and the names of options about a server or the pool.
    """
    section.skip("type", "tag")
    section.refuse(_DIAL_REFUSED)
    section.ignore(_DIAL_IGNORED)
    values = fields.server(section, "server_port", "server")
    # Without it no idle sessions are kept, as in sing-box.
    idle = section.integer("min_idle_session")
    values["m"] = checked_min_idle(section.label("min_idle_session"), idle)
    values |= fields.idle_times(section, _IDLE_TIMES) | _outbound_tls(section)
    section.done()
    return values


def inbound(section: Section) -> Values:
    """The settings of a server.

    Keys: "users" (a tuple of Users), "padding" (bytes), "no-tls" if it has no TLS (the start of an
    error text about that), and the names of options.
    """
    section.skip("type", "tag")
    section.refuse(_NETWORK)
    section.ignore(_LISTEN_IGNORED)
    values: Values = {"b": listen(section), "fast-open": section.flag("tcp_fast_open")}
    # sing-box identifies users without a name by their index.
    sections = section.sections("users")
    values["users"] = fields.users(sections, "name", "password", unnamed="user-")
    if not values["users"]:
        section.fail("users", "missing; give at least one user with name and password")
    values |= fields.idle_times(section, {"udp_timeout": "udp-timeout"})
    lines = section.texts("padding_scheme")
    if lines:
        raw = "\n".join(lines).encode("utf-8", "surrogatepass")
        values["padding"] = checked_scheme(section.label("padding_scheme"), raw)
    tls = section.section("tls")
    if tls is not None and tls.flag("enabled"):
        values |= _inbound_tls(tls)
    else:
        values["no-tls"] = section.label("tls")
    section.done()
    return values


def local(section: Section) -> Values:
    """The local port of the client: "b", and "users", a tuple of Users."""
    section.skip("type", "tag", "udp_timeout")
    section.refuse(_NETWORK | {
        "set_system_proxy": "set the proxy in the settings of your system, and remove it",
        "tls": "the local port speaks no TLS; remove it",
        "tcp_fast_open": "the local port has no TCP fast open; remove it",
    })  # fmt: skip
    section.ignore(_LISTEN_IGNORED)
    sections = section.sections("users")
    users = fields.users(sections, "username", "password", unnamed="user-")
    values: Values = {"b": listen(section), "users": users}
    section.done()
    return values


def listen(section: Section, port_key: str = "listen_port", default: str = _LISTEN) -> str:
    """The value of -l for the address of an inbound, which is in Go's syntax. Raises UsageError."""
    host = section.text("listen") or default
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    # In Go this means all addresses, IPv4 included.
    text = host_port("" if host == "::" else host, section.port(port_key))
    parse_endpoint(section.label("listen"), text)
    return text


def _outbound_tls(section: Section) -> Values:
    tls = section.section("tls")
    if tls is None or not tls.flag("enabled"):
        section.fail("tls", f"missing or not enabled; AnyTLS needs {ENABLED}")
    tls.refuse(_OUTBOUND_TLS_REFUSED)
    tls.ignore(_TLS_IGNORED)
    tls.skip("fragment_fallback_delay", "utls", fields.IGNORE_FINGERPRINT)
    if tls.present("utls"):
        fields.fingerprint(tls, "utls")
    name = tls.text("server_name")
    values: Values = {
        "n": host_name(tls.label("server_name"), name) if name else "",
        "no-sni": tls.flag("disable_sni"),
        "sv": tls.flag("insecure"),
        "ca": _pem(tls, "certificate"),
        "pin": fields.pins(tls, "certificate_public_key_sha256"),
    } | _pair(tls, "client_certificate", "client_key") | _negotiated(tls)
    if values["sv"] and (values["ca"] or values["pin"]):
        tls.fail("insecure", "turns off the verification that the other keys ask for; remove it")
    tls.done()
    return values


def _inbound_tls(tls: Section) -> Values:
    tls.refuse(_INBOUND_TLS_REFUSED)
    tls.ignore(_TLS_IGNORED)
    tls.skip("insecure")  # only for clients
    name = tls.text("server_name")
    values: Values = {
        "n": host_name(tls.label("server_name"), name) if name else "",
    } | _pair(tls, "certificate", "key") | _negotiated(tls)
    kind = tls.text("client_authentication")
    inline = fields.inline_pem(tls, "client_certificate")
    authorities = [inline] if inline is not None else tls.texts("client_certificate_path")
    tls.skip("client_certificate_path")
    if kind not in _CLIENT_AUTHENTICATION:
        tls.fail("client_authentication", "only no and require-and-verify are supported")
    if len(authorities) > 1:
        tls.fail("client_certificate_path", "only one file is supported; put all into it")
    if _CLIENT_AUTHENTICATION[kind]:
        if not authorities:
            tls.fail("client_certificate_path", "missing; client_authentication needs it")
        values["client-ca"] = authorities[0]
    tls.done()
    return values


def _negotiated(tls: Section) -> Values:
    return fields.negotiated(tls, tls.texts("alpn"), "min_version", "max_version")


def _pem(tls: Section, key: str) -> PemSource:
    """The inline value of `key`, else the path at `key` + `_path`, in sing-box's order."""
    path = tls.text(f"{key}_path")
    return fields.inline_pem(tls, key) or path


def _pair(tls: Section, cert: str, key: str) -> Values:
    values: Values = {"cert": _pem(tls, cert), "key": _pem(tls, key)}
    for given, missing in (("cert", "key"), ("key", "cert")):
        if values[given] and not values[missing]:
            name, other = (cert, key) if given == "cert" else (key, cert)
            raise UsageError(
                f"{tls.label(f'{other}_path')} is missing; {name} needs it, or {other} inline"
            )
    return values
