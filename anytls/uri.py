"""The URI of a server, as defined in anytls-go's docs/uri_scheme.md.

    anytls://[password@]host[:port]/?[key=value]&[key=value]...

The password is the whole userinfo of the URI (RFC 3986, 3.2.1), percent-encoded. The default port
is 443. `sni` is the name to send and verify; an IP address is not sent. `insecure=1` accepts any
certificate. Programs add their own parameters, and a name after a #.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import quote, unquote_to_bytes

from mtt.address import Endpoint
from mtt.errors import UsageError
from mtt.log import logger
from mtt.options.anytls import checked_password
from mtt.options.common import host_name, reachable
from mtt.options.flags import clipped, quoted

SCHEME = "anytls://"
DEFAULT_PORT = 443

# Maximum number of unknown parameters named in a log line.
_SHOWN = 8

_BAD_ESCAPE = re.compile(r"%(?![0-9a-fA-F]{2})")
_FORM = "write it like anytls://password@example.com:443/?sni=example.com"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerUri:
    """The content of a URI."""

    endpoint: Endpoint
    password: str = field(default="", repr=False)  # empty if there is none
    sni: str = ""  # an ASCII host name, or an IP literal; empty if there is none
    insecure: bool | None = None  # None if not given


def is_uri(text: str) -> bool:
    """Whether `text` is meant as a URI of any scheme, rather than `host:port`."""
    return "://" in text


def parse_uri(option: str, text: str) -> ServerUri:
    """The server described by the URI `text`, the value of `option`.

    Logs a warning about unknown parameters. Raises UsageError, which shows at most host and port of
    the URI, or the name or value of a parameter.
    """
    if text[: len(SCHEME)].lower() != SCHEME:
        raise UsageError(f"{option}: the URI does not start with {SCHEME}; {_FORM}")
    rest, _, _ = text[len(SCHEME) :].partition("#")
    rest, _, query = rest.partition("?")
    authority, _, path = rest.partition("/")
    if "@" not in authority and "@" in text:
        # A password with one of these characters would be taken for a host, and logged.
        raise UsageError(
            f"{option}: the URI has an @ after a /, ? or #; in a password write those as %2F, %3F "
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
    insecure = known.get("insecure", "")
    if insecure not in ("", "0", "1"):
        raise UsageError(f"{option}: insecure is {quoted(insecure)} in the URI; write 1 or 0")
    return ServerUri(
        endpoint=_endpoint(option, location),
        password=password,
        sni=host_name(f"{option}: sni", known["sni"]) if known.get("sni") else "",
        insecure=insecure == "1" if insecure else None,
    )


def format_uri(server: Endpoint, password: str, *, sni: str = "", insecure: bool = False) -> str:
    """The URI of a server, named after its host."""
    user = quote(password, safe="")
    parameters = [f"sni={quote(sni, safe='')}"] if sni else []
    parameters += ["insecure=1"] if insecure else []
    query = f"?{'&'.join(parameters)}" if parameters else ""
    return f"{SCHEME}{user}@{server}/{query}#{quote(server.host, safe='')}"


def _endpoint(option: str, location: str) -> Endpoint:
    if not location:
        raise UsageError(f"{option}: the URI has no host; {_FORM}")
    if "|" in location:
        raise UsageError(f"{option}: {quoted(location)}: a URI names one host; {_FORM}")
    # No port, or an empty one, which is equivalent (RFC 3986, 3.2.3).
    bare = location.removesuffix(":")
    if bare.endswith("]") or ":" not in bare:
        bare = f"{bare}:{DEFAULT_PORT}"
    return reachable(option, bare)


def _parameters(option: str, query: str) -> tuple[dict[str, str], list[str]]:
    """The known parameters (the last of equal ones), and the names of unknown ones."""
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


def _decoded(option: str, text: str, what: str) -> str:
    """`text`, percent-decoded."""
    if _BAD_ESCAPE.search(text):
        raise UsageError(
            f"{option}: in the {what} of the URI a % does not start an escape; write % as %25"
        )
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeError:  # also for raw bytes from the command line
        raise UsageError(f"{option}: the {what} in the URI is not UTF-8 text") from None
