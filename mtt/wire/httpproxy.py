"""HTTP between a proxy and its clients (RFC 9110, 7; RFC 9112, 3.2).

There are two kinds of requests: CONNECT, which opens a tunnel, and requests for an absolute URI,
which are forwarded (`httphop`).
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from mtt.outcome import Outcome
from mtt.wire import addresses
from mtt.wire.http1 import (
    HttpError,
    Reply,
    Request,
    encode_head,
    is_host,
    parse_request,
    text_reply,
)
from mtt.wire.httpbody import Body
from mtt.wire.httphop import asks_for_upgrade, forwarded_request

CONNECTED = b"HTTP/1.1 200 Connection established\r\n\r\n"

# A fragment is for the client only (RFC 9110, 4.2.5), but some clients send it.
_FRAGMENT = re.compile(rb"([^ \r\n]* [^ #\r\n]*)#[^ \r\n]*")
_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([^#]*)")
# IPv6 zones are refused: they are local to the client's machine (RFC 6874, 1).
_AUTHORITY = re.compile(r"(\[[^\[\]%]*\]|[^:\[\]@/?#]*)(?::([0-9]*))?")
_IDEMPOTENT = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PUT", "TRACE"})
# The status when a destination was not reached, 502 otherwise.
_STATUS = {
    Outcome.NOT_ALLOWED: 403,
    Outcome.TIMED_OUT: 504,
    Outcome.NO_AGENT: 503,
    Outcome.OVERLOADED: 503,
}


class ProxyRequest(NamedTuple):
    """A request and its destination.

    `head`: the head to forward to the destination; empty for a CONNECT. `body`: finds the end of
    the request's body; None for a CONNECT, where all further bytes belong to the tunnel.
    `upgrade`: the request asks the destination for another protocol.
    """

    request: Request
    host: str
    port: int
    head: bytes
    body: Body | None
    upgrade: bool

    @property
    def is_idempotent(self) -> bool:
        """Whether it may be retried if its delivery is uncertain (RFC 9110, 9.2.2)."""
        return self.request.method in _IDEMPOTENT


def parse(head: bytes) -> ProxyRequest:
    """A request to a proxy, from a head that ends where `http1.find_head_end` says.

    Raises HttpError.
    """
    found = _FRAGMENT.match(head)
    bare = head if found is None else found[1] + head[found.end() :]
    request = parse_request(bare, userinfo=True)
    if request.method == "CONNECT":
        if request.has_body:
            raise HttpError(400, "CONNECT with a body")
        host, port = _split_authority(request.target, 0)
        return ProxyRequest(request, host, port, b"", None, False)
    uri = _URI.fullmatch(request.target)
    if not uri:
        raise HttpError(400, "this is a proxy: the request needs an absolute URI", public=True)
    scheme, authority, rest = uri.groups()
    if scheme.lower() != "http":
        raise HttpError(400, "for other URIs than http: use CONNECT", public=True)
    userinfo, at, authority = authority.rpartition("@")
    host, port = _split_authority(authority, 80)
    if "@" in userinfo:
        raise HttpError(400, "malformed host in the request target", public=True)
    authorization = _basic(userinfo) if at and userinfo else ""
    head = forwarded_request(
        request, _target(request, rest), authority, authorization=authorization
    )
    body = Body(request.content_length, chunked=request.chunked)
    return ProxyRequest(request, host, port, head, body, asks_for_upgrade(request))


def _split_authority(authority: str, default_port: int) -> tuple[str, int]:
    """Host and port; with a `default_port` of 0 the port is required. Raises HttpError."""
    found = _AUTHORITY.fullmatch(authority)
    if not found:
        raise HttpError(400, "malformed host in the request target", public=True)
    host, digits = found.groups()
    port = int(digits or default_port) if len(digits or "") <= 5 else 0
    if not 0 < port <= 0xFFFF:
        raise HttpError(400, "malformed port in the request target", public=True)
    try:
        # Encode and decode: gives the canonical form of every address, as from SOCKS clients.
        address = addresses.decode(addresses.encode(host, port))
    except ValueError:
        address = None
    if address is None:
        raise HttpError(400, "malformed host in the request target", public=True)
    return address[:2]


def _target(request: Request, rest: str) -> str:
    """The request target for the server; `rest` is the URI after the authority."""
    if not rest and request.method == "OPTIONS":
        return "*"  # RFC 9112, 3.2.4
    return rest if rest.startswith("/") else "/" + rest


def _basic(userinfo: str) -> str:
    """The Authorization value equivalent to a URI's `user:password`."""
    # Deprecated (RFC 9110, 4.2.4), but wget, urllib and users' scripts leave it in the URI.
    user, _, password = userinfo.partition(":")
    raw = [unquote_to_bytes(part.encode("utf-8", "surrogateescape")) for part in (user, password)]
    if b":" in raw[0]:  # the password would begin there (RFC 7617, 2)
        raise HttpError(400, "the user in the request target has a colon", public=True)
    return "Basic " + b64encode(b":".join(raw)).decode("ascii")


def connect_request(host: str, port: int, login: tuple[str, str] | None = None) -> bytes:
    """A client's request for a tunnel to `host`, an IP literal or a name in any script.

    `login`: user and password for the proxy; a user has no colon (RFC 7617, 2). Raises ValueError
    if the host cannot be sent.
    """
    host = sendable_host(host)
    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    headers = [("Host", authority)]
    if login is not None:
        raw = ":".join(login).encode("utf-8", "surrogateescape")
        headers.append(("Proxy-Authorization", "Basic " + b64encode(raw).decode("ascii")))
    return encode_head(f"CONNECT {authority} HTTP/1.1", headers)


def sendable_host(host: str) -> str:
    """`host`, an IP literal or a name in any script, as another machine understands it.

    Raises ValueError if it is neither.
    """
    host = host.partition("%")[0] if ":" in host else host  # an IPv6 zone is local
    if not host.isascii():
        host = host.encode("idna").decode("ascii")
    if not host or not is_host(host):
        raise ValueError("neither a host name nor an IP address")
    return host


def login(request: Request) -> tuple[bytes, bytes] | None:
    """The client's user and password for the proxy; None if missing or malformed."""
    return basic_login(request, "proxy-authorization")


def basic_login(request: Request, header: str) -> tuple[bytes, bytes] | None:
    """User and password in a header with Basic credentials (RFC 7617); None without any."""
    scheme, _, encoded = (request.first(header) or "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = b64decode(encoded.strip(" "), validate=True).partition(b":")
    except ValueError:
        return None
    return (user, password) if colon else None


def login_wanted() -> Reply:
    """The answer to a client with missing or wrong credentials."""
    challenge = ("Proxy-Authenticate", 'Basic realm="proxy", charset="UTF-8"')
    return text_reply(407, "this proxy wants a user and a password", challenge)


def failure(outcome: Outcome) -> Reply:
    """The answer if the destination could not be reached."""
    return text_reply(_STATUS.get(outcome, 502), outcome.text)
