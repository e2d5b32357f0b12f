"""HTTP as a proxy speaks it to its clients (RFC 9110, 7; RFC 9112, 3.2).

Two kinds of requests: CONNECT, after which bytes pass unseen, and those for an absolute URI, which
are forwarded. One connection carries one forwarded request: its head tells the server so, and
what a client sends behind the request's body must not reach that server, because it is a request
for somebody else.
"""

from __future__ import annotations

import re
from base64 import b64decode
from typing import NamedTuple

from mtt.wire import addresses
from mtt.wire.addresses import AddressError
from mtt.wire.http1 import MAX_HEAD, HttpError, Reply, Request, parse_request, text_reply
from mtt.wire.socks import Outcome

CONNECTED = b"HTTP/1.1 200 Connection established\r\n\r\n"

# A line of a chunked body or its trailer. Go allows 4096 for the former; trailers are headers.
MAX_LINE = 8192

# Bytes of all trailers together; they are headers.
MAX_TRAILERS = MAX_HEAD

# What is between the client and us (RFC 9110, 7.6.1), apart from what Connection names. No Upgrade
# either: who wants to change the protocol asks for a CONNECT, as browsers do. There is no Via in
# exchange, for it would tell every web site of the proxy.
_HOP_BY_HOP = frozenset({
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection",
    "te", "upgrade",
})  # fmt: skip
# What everybody needs who shall find the request's end, whatever Connection says of it.
_FRAMING = frozenset({"content-length", "transfer-encoding"})

_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([^#]*)")
# No zone in an IPv6 address: it is of this machine (RFC 6874, 1).
_AUTHORITY = re.compile(r"(\[[^\[\]%]*\]|[^:\[\]@/?#]*)(?::([0-9]*))?")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n\0]*)?\r\n")

# To the answers that SOCKS has for a failure.
_STATUS = {Outcome.NOT_ALLOWED: 403, Outcome.TIMED_OUT: 504}


class ProxyRequest(NamedTuple):
    """Where a request goes.

    `head` is what the destination gets to read first: nothing for a CONNECT. `body` finds the end
    of what else belongs to the request, None for a CONNECT, where everything does.
    """

    request: Request
    host: str
    port: int
    head: bytes
    body: Body | None


def parse(head: bytes) -> ProxyRequest:
    """A request to a proxy from a head that ends where `http1.find_head_end` says.

    Raises HttpError.
    """
    request = parse_request(head)
    if request.method == "CONNECT":
        if request.has_body:
            raise HttpError(400, "CONNECT with a body")
        host, port = _split_authority(request.target, 0)
        return ProxyRequest(request, host, port, b"", None)
    found = _URI.fullmatch(request.target)
    if not found:
        raise HttpError(400, "this is a proxy: the request needs an absolute URI", public=True)
    scheme, authority, rest = found.groups()
    if scheme.lower() != "http":
        raise HttpError(400, "for other URIs than http: use CONNECT", public=True)
    host, port = _split_authority(authority, 80)
    body = Body(request.content_length, chunked=request.chunked)
    return ProxyRequest(request, host, port, _forwarded(request, authority, rest), body)


def _split_authority(authority: str, default_port: int) -> tuple[str, int]:
    """Host and port; for no default port (0) it must be there. Raises HttpError."""
    found = _AUTHORITY.fullmatch(authority)
    if not found:
        # User and password have no place in it, and are used to deceive (RFC 9110, 4.2.4).
        raise HttpError(400, "malformed host in the request target", public=True)
    host, digits = found.groups()
    port = int(digits or default_port) if len(digits or "") <= 5 else 0
    if not 0 < port <= 0xFFFF:
        raise HttpError(400, "malformed port in the request target", public=True)
    try:
        # There and back: one form of every address, as from SOCKS clients.
        address = addresses.decode(addresses.encode(host, port))
    except AddressError:
        address = None
    if address is None:
        raise HttpError(400, "malformed host in the request target", public=True)
    return address[:2]


def _forwarded(request: Request, authority: str, rest: str) -> bytes:
    """The head of `request` for the server of its URI; `rest` is the URI behind the authority."""
    if not rest and request.method == "OPTIONS":
        rest = "*"  # RFC 9112, 3.2.4
    elif not rest.startswith("/"):
        rest = "/" + rest
    dropped = (_HOP_BY_HOP | set(request.tokens("connection"))) - _FRAMING | {"host"}
    lines = [
        # Ours would be 1.1, which can get a client of 1.0 an answer it does not understand.
        f"{request.method} {rest} HTTP/1.{min(request.version[1], 1)}".encode(
            "utf-8", "surrogateescape"
        ),
        b"Host: " + authority.encode("utf-8", "surrogateescape"),  # not the header: RFC 9112, 3.2.2
    ]
    lengths = 0
    for name, value in request.headers:
        lengths += name == "content-length"
        # Of equal lengths one is enough (RFC 9110, 8.6).
        if name not in dropped and not (name == "content-length" and lengths > 1):
            # As everybody writes them, for the servers that know no other way.
            lines.append(f"{name.title()}: {value}".encode("latin-1"))
    return b"\r\n".join([*lines, b"Connection: close", b"", b""])


def login(request: Request) -> tuple[bytes, bytes] | None:
    """User and password that a client shows its proxy (RFC 7617), None without usable ones."""
    scheme, _, encoded = (request.first("proxy-authorization") or "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = b64decode(encoded.strip(" "), validate=True).partition(b":")
    except ValueError:
        return None
    return (user, password) if colon else None


def login_wanted() -> Reply:
    """The answer to who has shown no user and password, or wrong ones."""
    challenge = ("Proxy-Authenticate", 'Basic realm="proxy", charset="UTF-8"')
    return text_reply(407, "this proxy wants a user and a password", challenge)


def failure(outcome: Outcome) -> Reply:
    """The answer when the destination was not reached."""
    return text_reply(_STATUS.get(outcome, 502), outcome.text)


class Body:
    """Finds the end of a request's body (RFC 9112, 6 and 7.1).

    Stricter than it has to be: where the server could see another end than we do, something
    could be slipped past us.
    """

    __slots__ = ("_chunked", "_line", "_trailers", "_wanted", "left", "over")

    def __init__(self, length: int, *, chunked: bool) -> None:
        self.left = length  # bytes until the body, or this chunk of it, is complete
        self._chunked = chunked
        self._trailers = 0  # bytes of them
        self._line = b""  # what has come of a line
        self._wanted = "size"  # which line it is: "size", "end" (of a chunk), "trailer"
        self.over = not chunked and not length

    def take(self, data: bytes | bytearray, content: bytearray | None = None) -> int:
        """How many bytes of `data`, from its start, belong to the body.

        What is in them besides the framing of chunks is appended to `content`. Raises HttpError:
        400, or 431 for too many trailers.
        """
        at = 0
        while at < len(data) and not self.over:
            if self.left:
                step = min(self.left, len(data) - at)
                if content is not None:
                    content += data[at : at + step]
                self.left -= step
                at += step
                self.over = not (self.left or self._chunked)
                continue
            end = data.find(b"\n", at) + 1
            self._line += data[at : end or len(data)]
            at = end or len(data)
            if len(self._line) > MAX_LINE:
                raise HttpError(400, "too long a line in a chunked body")
            if end:
                line, self._line = self._line, b""
                self._take_line(line)
        return at

    def _take_line(self, line: bytes) -> None:
        empty = line == b"\r\n"
        if self._wanted == "size":
            found = _CHUNK.fullmatch(line)
            if not found:
                raise HttpError(400, "malformed chunk")
            self.left = int(found[1], 16)
            self._wanted = "end" if self.left else "trailer"
        elif self._wanted == "end":
            if not empty:
                raise HttpError(400, "malformed chunk")
            self._wanted = "size"
        elif not line.endswith(b"\r\n"):
            raise HttpError(400, "malformed trailer")
        else:
            self.over = empty
            self._trailers += len(line)
            if self._trailers > MAX_TRAILERS:
                raise HttpError(431, f"the trailers are larger than {MAX_TRAILERS} bytes")
