"""The file of -config: a whole configuration of sing-box or Xray, or only its AnyTLS object.

From a whole configuration, the supported inbounds and outbounds are used. A warning names what is
not used, and every unknown key.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from anytls import fields, singbox, xray
from anytls.json_file import JsonFile, Section
from mtt.errors import UsageError
from mtt.options.flags import Values, clipped

OPTION = "-config"
ANYTLS = "anytls"

# A client tries the servers one after the other.
MAX_SERVERS = 64

_POOL = ("m", "idle-check", "idle-timeout")

# Outbounds that need no warning: built-in actions, or choices between others.
_ORDINARY = ("direct", "block", "dns", "selector", "urltest", "freedom", "blackhole", "loopback")

_NO_RULES = "routing rules are not supported"
_TOP = dict.fromkeys(("route", "routing", "dns", "fakedns", "policy"), _NO_RULES) | dict.fromkeys(
    ("log", "ntp", "experimental", "certificate", "endpoints", "services", "api", "stats",
     "observatory", "burstObservatory", "reverse", "metrics", "transport"),
    "not supported; see -h for the options that are",
)  # fmt: skip


class ClientFile(NamedTuple):
    """The content of a client's file."""

    local: Values  # "b" and "users", a tuple of Users; empty if it has no local port
    pool: Values  # "m", "idle-check" and "idle-timeout", as far as given
    servers: tuple[Values, ...]  # see singbox.outbound(); at least one


def read_client(path: str, *, ignore_fingerprint: bool = False) -> ClientFile:
    """Read the file `path` of a client. Raises UsageError.

    Args:
        ignore_fingerprint: accept a file that asks for a browser's TLS handshake.
    """
    file = JsonFile(OPTION, path, ignore_fingerprint=ignore_fingerprint)
    inbounds, outbounds = _sections(file)
    servers: list[Values] = []
    left: list[Section] = []
    for each in outbounds:
        kind = _kind(each)
        if kind != ANYTLS:
            left += [each] if kind not in _ORDINARY else []
        elif each.has("protocol"):
            servers += xray.outbound(each)
        else:
            servers.append(singbox.outbound(each))
    if not servers:
        raise UsageError(
            f"{file.name} has no AnyTLS outbound: an object with "
            '"type": "anytls", "server", "server_port", "password" and "tls"'
        )
    if len(servers) > MAX_SERVERS:
        raise UsageError(f"{file.name} has {len(servers)} servers; {MAX_SERVERS} at most")
    local: Values = {}
    for each in inbounds:
        kind = _kind(each)
        if kind not in (*singbox.LOCAL_TYPES, *xray.LOCAL_PROTOCOLS):
            left.append(each)
        elif local:
            file.note_ignored(each.path, "the first local port speaks SOCKS and HTTP alike")
        else:
            local = xray.local(each) if each.has("protocol") else singbox.local(each)
    _note_left(file, left, "anytls-client")
    pools = [{key: server[key] for key in _POOL if key in server} for server in servers]
    if any(pool != pools[0] for pool in pools):
        file.note_ignored(
            "what the other outbounds say of idle sessions", "all servers share the first one's"
        )
    file.warn()
    return ClientFile(local, pools[0], tuple(servers))


def read_server(path: str) -> Values:
    """Read the file `path` of a server, see `singbox.inbound()`. Raises UsageError."""
    file = JsonFile(OPTION, path)
    inbounds, outbounds = _sections(file)
    ours = [each for each in inbounds if _kind(each) == ANYTLS]
    if not ours:
        raise UsageError(
            f"{file.name} has no AnyTLS inbound: an object with "
            '"type": "anytls", "listen", "listen_port", "users" and "tls"'
        )
    if len(ours) > 1:
        raise UsageError(
            f"{ours[1].label()} is a second AnyTLS inbound; move it to a separate file, and start "
            "another anytls-server with that"
        )
    if ours[0].has("protocol"):
        raise UsageError(
            f"{ours[0].label()} is an inbound of Xray; write one of sing-box: "
            '"type": "anytls", "listen", "listen_port", "users" and "tls"'
        )
    values = singbox.inbound(ours[0])
    others = [each for each in inbounds if each is not ours[0]]
    others += [each for each in outbounds if _kind(each) not in _ORDINARY]
    _note_left(file, others, "anytls-server")
    file.warn()
    return values


def _sections(file: JsonFile) -> tuple[list[Section], list[Section]]:
    """The inbounds and outbounds."""
    top = Section(file, "", file.top)
    if top.flag(fields.IGNORE_FINGERPRINT):
        file.ignore_fingerprint = True
    if top.has("type") or top.has("protocol"):
        # A single object. Only inbounds have these keys.
        inbound = any(top.has(key) for key in ("listen", "listen_port", "port", "users"))
        return ([top], []) if inbound else ([], [top])
    inbounds, outbounds = top.sections("inbounds"), top.sections("outbounds")
    top.skip("$schema", "remarks", "version")
    top.ignore(_TOP)
    top.done()
    return inbounds, outbounds


def _kind(section: Section) -> str:
    """The protocol of an inbound or outbound of sing-box or Xray."""
    return section.text("protocol" if section.has("protocol") else "type")


def _note_left(file: JsonFile, sections: Iterable[Section], program: str) -> None:
    for each in sections:
        place = f"{each.path} ({clipped(_kind(each))})"
        file.note_ignored(place, f"{program} does not use it")
