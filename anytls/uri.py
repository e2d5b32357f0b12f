"""The URI of a server, as anytls-go's docs/uri_scheme.md has it.

    anytls://[password@]host[:port]/?[key=value]&[key=value]...

The password is the user of the URI (RFC 3986, 3.2.1), all of it, and percent-encoded; the port is
443 if not given. `sni` is the name to send and to verify, where an IP address says to send none;
`insecure=1` accepts any certificate. Programs add parameters of their own, and a name behind a #.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

from mtt.address import Endpoint
from mtt.errors import UsageError
from mtt.log import logger
from mtt.options.anytls import checked_password
from mtt.options.common import host_name, reachable
from mtt.options.flags import clipped, quoted

SCHEME = "anytls://"
DEFAULT_PORT = 443

# How many names of unknown parameters fit into a log line.
_SHOWN = 8

_BAD_ESCAPE = re.compile(r"%(?![0-9a-fA-F]{2})")
_FORM = "write it like anytls://password@example.com:443/?sni=example.com"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerUri:
    """What a URI says."""

    endpoint: Endpoint
    password: str = field(default="", repr=False)  # empty if there is none
    sni: str = ""  # a host name in ASCII, or an IP literal; empty if there is none
    insecure: bool | None = None  # None if nothing is said


def is_uri(text: str) -> bool:
    """Whether `text` is meant to be a URI, of whatever scheme, and not `host:port`."""
    return "://" in text


def parse_uri(option: str, text: str) -> ServerUri:
    """The server that the URI `text`, the value of `option`, is about.

    Parameters that nobody knows are named in a warning. Raises UsageError, which never shows more
    of the URI than host and port, or the name or value of a parameter.
    """
    if text[: len(SCHEME)].lower() != SCHEME:
        raise UsageError(f"{option}: the URI does not start with {SCHEME}; {_FORM}")
    rest, _, _ = text[len(SCHEME) :].partition("#")
    rest, _, query = rest.partition("?")
    authority, _, path = rest.partition("/")
    if "@" not in authority and "@" in text:
        # A password with one of these characters in it would be taken for a host, and end in logs.
        raise UsageError(
            f"{option}: the URI has an @ behind a /, ? or #; in a password write those as %2F, %3F "
            f"and %23, and elsewhere @ as %40"
        )
    user, at, location = authority.rpartition("@")
    password = checked_password(option, _decoded(option, user, "password")) if at and user else ""
    known, unknown = _parameters(option, query)
    if path:
        unknown.insert(0, "the path")
    if unknown:
        more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
        names = ", ".join(clipped(name) for name in unknown[:_SHOWN])
        logger.warning("%s: not used of the URI: %s%s", option, names, more)
    return ServerUri(
        endpoint=_endpoint(option, location),
        password=password,
        sni=host_name(f"{option}: sni", known["sni"]) if known.get("sni") else "",
        insecure=_insecure(option, known.get("insecure", "")),
    )


def _endpoint(option: str, location: str) -> Endpoint:
    if not location:
        raise UsageError(f"{option}: the URI has no host; {_FORM}")
    if "|" in location:
        raise UsageError(f"{option}: {quoted(location)}: a URI names one host; {_FORM}")
    # Without a port, or an empty one, which means the same (RFC 3986, 3.2.3).
    bare = location.removesuffix(":")
    if bare.endswith("]") or ":" not in bare:
        bare = f"{bare}:{DEFAULT_PORT}"
    return reachable(option, bare)


def _parameters(option: str, query: str) -> tuple[dict[str, str], list[str]]:
    """The known parameters, the last of equal ones; and the names of the others."""
    known: dict[str, str] = {}
    unknown: dict[str, None] = {}
    for pair in query.split("&"):
        if not pair:
            continue
        name, _, value = pair.partition("=")
        name = _decoded(option, name, "name of a parameter")
        if name in ("sni", "insecure"):
            known[name] = _decoded(option, value, f"value of {name}")
        else:
            unknown[name] = None
    return known, list(unknown)


def _insecure(option: str, value: str) -> bool | None:
    if value not in ("", "0", "1"):
        raise UsageError(f"{option}: insecure is {quoted(value)} in the URI; write 1 or 0")
    return value == "1" if value else None


def _decoded(option: str, text: str, what: str) -> str:
    """`text` without percent-encoding."""
    if _BAD_ESCAPE.search(text):
        raise UsageError(
            f"{option}: in the {what} of the URI a % does not start an escape; write % as %25"
        )
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeError:  # also of the command line itself
        raise UsageError(f"{option}: the {what} in the URI is not UTF-8 text") from None
