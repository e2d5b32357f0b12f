"""The outbound of Xray and its forks, and the local port of such a configuration.

`settings.servers` is a list, or `settings` itself describes the only server. Both spellings of the
pool's keys are in use. Durations are in seconds. Fields of `streamSettings`:
https://xtls.github.io/config/transports/tls.html
"""

from __future__ import annotations

from anytls import fields
from anytls.json_file import Section
from anytls.singbox import listen
from mtt.options.anytls import checked_min_idle
from mtt.options.common import host_name
from mtt.options.flags import Values, quoted
from mtt.trust.pem import PemSource
from mtt.users.user import User

# Protocols of inbounds whose clients the local port can serve.
LOCAL_PROTOCOLS = ("mixed", "socks", "http")

_LISTEN = "0.0.0.0"  # Xray's default

_OTHER_WAY = "connections follow the system's routes; remove it"
_TUNING = "not adjustable"

_OUTBOUND_REFUSED = dict.fromkeys(("proxySettings", "sendThrough"), _OTHER_WAY) | {
    "mux": fields.NO_MUX,
}
_SOCKOPT_REFUSED = dict.fromkeys(("mark", "interface", "dialerProxy"), _OTHER_WAY) | {
    "tcpFastOpen": fields.NO_CLIENT_FAST_OPEN,
}
_SOCKOPT_IGNORED = dict.fromkeys(
    ("domainStrategy", "tcpKeepAliveInterval", "tcpKeepAliveIdle", "tcpUserTimeout", "tcpNoDelay",
     "tcpcongestion", "tcpMptcp", "tcpMaxSeg", "tcpWindowClamp", "happyEyeballs",
     "addressPortStrategy", "V6Only"),
    _TUNING,
)  # fmt: skip
_WHOLE_CERTIFICATES = (
    "hashes of certificates cannot be used, only those of public keys: remove it, and give -pin "
    "with what the server prints at its start"
)
_OTHER_NAME = "the name that is verified is the one that is sent, serverName; remove it"
_TLS_REFUSED = {
    "pinnedPeerCertificateChainSha256": _WHOLE_CERTIFICATES,
    "pinnedPeerCertSha256": _WHOLE_CERTIFICATES,
    "serverNameToVerify": _OTHER_NAME,
    "verifyPeerCertInNames": _OTHER_NAME,
    "verifyPeerCertByName": _OTHER_NAME,
    "cipherSuites": fields.NO_CHOICE,
    "curvePreferences": fields.NO_CHOICE,
    "echConfigList": fields.NO_ECH,
}
_IDLE_TIMES = (
    {"idleSessionCheckInterval": "idle-check", "idleSessionTimeout": "idle-timeout"},
    {"idle_session_check_interval": "idle-check", "idle_session_timeout": "idle-timeout"},
)
_NATIVE = ("", "unsafe", "none")  # fingerprints: that of the program's own TLS


def outbound(section: Section) -> list[Values]:
    """The servers of an outbound, each in the form of `singbox.outbound()`."""
    section.skip("protocol", "tag", "targetStrategy")
    section.refuse(_OUTBOUND_REFUSED)
    settings = section.section("settings")
    if settings is None:
        section.fail("settings", "missing; give servers with address, port and password")
    stream = section.section("streamSettings")
    if stream is None:
        section.fail("streamSettings", 'missing; AnyTLS needs "security": "tls" in it')
    pool: Values = {"m": 0}
    for keys in _IDLE_TIMES:
        pool |= fields.idle_times(settings, keys)
    for key in ("minIdleSession", "min_idle_session"):
        if number := settings.integer(key):
            pool["m"] = checked_min_idle(settings.label(key), number)
    tls = _stream(stream)
    if settings.has("servers"):
        servers = settings.sections("servers")
        if not servers:
            settings.fail("servers", "empty; give address, port and password of one")
    else:
        servers = [settings]
    found = []
    for each in servers:
        each.skip("email", "level")
        found.append(fields.server(each, "port", "address") | pool | tls)
        each.done()
    settings.done()
    section.done()
    return found


def local(section: Section) -> Values:
    """The local port of the client: "b", and "users", a tuple of Users."""
    section.skip("protocol", "tag", "sniffing", "allocate", "streamSettings")
    text = listen(section, "port", _LISTEN)
    users: tuple[User, ...] = ()
    settings = section.section("settings")
    if settings is not None:
        settings.skip("udp", "ip", "userLevel", "timeout", "allowTransparent", "auth")
        accounts = settings.sections("accounts")
        # A SOCKS inbound has a switch for accounts; an HTTP inbound has none.
        if section.text("protocol") == "http" or settings.text("auth") == "password":
            users = fields.users(accounts, "user", "pass")
        settings.done()
    section.done()
    return {"b": text, "users": users}


def _stream(stream: Section) -> Values:
    network = stream.text("network") or "raw"
    if network not in ("tcp", "raw"):
        stream.fail("network", f"{quoted(network)} is not supported; AnyTLS has raw only")
    security = stream.text("security")
    if security == "reality":
        stream.fail("security", fields.NO_REALITY)
    if security != "tls":
        stream.fail("security", 'not "tls"; AnyTLS needs TLS')
    for key in ("tcpSettings", "rawSettings"):
        raw = stream.section(key)
        header = raw.section("header") if raw is not None else None
        if header is not None and header.text("type") not in ("", "none"):
            header.fail("type", 'only "none" is supported')
    # Settings of unused transports and securities: clients write all of them.
    stream.skip("realitySettings", "kcpSettings", "wsSettings", "httpSettings", "grpcSettings",
                "httpupgradeSettings", "xhttpSettings", "quicSettings")  # fmt: skip
    sockopt = stream.section("sockopt")
    if sockopt is not None:
        sockopt.refuse(_SOCKOPT_REFUSED)
        sockopt.ignore(_SOCKOPT_IGNORED)
        sockopt.skip("tproxy", "acceptProxyProtocol")  # only for inbounds
        sockopt.done()
    tls = stream.section("tlsSettings")
    values = _tls(tls) if tls is not None else {}
    stream.done()
    return values


def _tls(tls: Section) -> Values:
    tls.refuse(_TLS_REFUSED)
    tls.ignore({"masterKeyLog": "the keys of TLS are not written to a file"})
    tls.skip("rejectUnknownSni", "enableSessionResumption", "echForceQuery", "echSockopt")
    tls.skip(fields.IGNORE_FINGERPRINT)
    if tls.text("fingerprint") not in _NATIVE:
        fields.fingerprint(tls, "fingerprint")
    name = tls.text("serverName")
    values: Values = {
        "n": host_name(tls.label("serverName"), name) if name else "",
        "sv": tls.flag("allowInsecure"),
        "pin": fields.pins(tls, "pinnedPeerCertificatePublicKeySha256"),
    } | _certificates(tls)
    # A list, or one string with commas.
    names = [part.strip() for text in tls.texts("alpn") for part in text.split(",")]
    values |= fields.negotiated(tls, filter(None, names), "minVersion", "maxVersion")
    if values["sv"] and (values.get("ca") or values["pin"]):
        tls.fail("allowInsecure", "turns off the verification that the other keys ask for; "
                                  "remove it")  # fmt: skip
    if tls.flag("disableSystemRoot") and not (values.get("ca") or values["pin"]):
        tls.fail("disableSystemRoot", "leaves no trusted roots; add a certificate with usage "
                                      "verify, or remove it")  # fmt: skip
    tls.done()
    return values


def _certificates(tls: Section) -> Values:
    """The trusted certificates and the client's own."""
    values: Values = {}
    for each in tls.sections("certificates"):
        each.skip("ocspStapling", "oneTimeLoading", "buildChain")
        usage = each.text("usage") or "encipherment"
        if usage not in ("verify", "encipherment"):
            each.fail("usage", f"{quoted(usage)} is not supported; write verify or encipherment")
        cert, key = _pem(each, "certificate"), _pem(each, "key")
        found: Values = {"ca": cert} if usage == "verify" else {"cert": cert, "key": key}
        for name, source in (("certificate", cert), ("key", key)):
            if not source and (name == "certificate" or usage != "verify"):
                each.fail(f"{name}File", "missing; give the path of a PEM file, or its lines in "
                                         f"{name}")  # fmt: skip
        if found.keys() & values.keys():
            each.fail("usage", "only one certificate per usage is supported; put all into one file")
        values |= found
        each.done()
    return values


def _pem(each: Section, key: str) -> PemSource:
    """The path at `key` + `File`, else the inline value of `key`, in Xray's order."""
    inline = fields.inline_pem(each, key)
    return each.text(f"{key}File") or inline or ""
