"""Heads of HTTP messages as a proxy forwards them, without hop-by-hop headers.

RFC 9110, 7.6.1: the proxy replaces Connection, the headers it names, and the known hop-by-hop
headers with its own. It adds no Via, which would reveal the proxy to every web site.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from mtt.wire.http1 import HttpError, Request, Response, parse_response, response_framing
from mtt.wire.httpbody import Body

_OF_ONE_CONNECTION = frozenset({
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection",
    "te", "upgrade",
})  # fmt: skip
# Kept even if Connection names them: they determine the end of a message.
_FRAMING = frozenset({"content-length", "transfer-encoding"})
_OF_CHUNKS = frozenset({"transfer-encoding", "trailer"})
# An HTTP/2 connection carries requests for other servers too, and the client would take the upgrade
# for one between itself and the proxy.
_NEVER_UPGRADED_TO = frozenset({"h2", "h2c"})
_TIMEOUT = re.compile(r"(?:^|[,; ])timeout *= *\"?([0-9]{1,6})", re.IGNORECASE)


def is_persistent(request: Request) -> bool:
    """Whether the connection to a proxy's client persists after the response to `request`.

    Never for HTTP/1.0: another proxy may have forwarded such a client's keep-alive unchanged
    (RFC 9112, 9.3).
    """
    return (
        request.version >= (1, 1)
        and request.keep_alive
        and "close" not in request.tokens("proxy-connection")
    )


def asks_for_upgrade(request: Request) -> bool:
    """Whether `request` asks for a protocol, such as WebSocket, that can be tunnelled."""
    wanted = {name.partition("/")[0] for name in request.tokens("upgrade")}
    return (
        request.version >= (1, 1)
        and "upgrade" in request.tokens("connection")
        and bool(wanted)
        and not wanted & _NEVER_UPGRADED_TO
    )


def forwarded_request(
    request: Request, target: str, authority: str, *, authorization: str = ""
) -> bytes:
    """The head of `request` for the server of its URI.

    `authority` replaces the Host header (RFC 9112, 3.2.2). `authorization` becomes the
    Authorization header unless the request has one.
    """
    upgrade = asks_for_upgrade(request)
    dropped = {"host"}
    options = ["Upgrade" if upgrade else "keep-alive" if is_persistent(request) else "close"]
    if request.version < (1, 1):
        dropped.add("expect")  # the client would not understand a 100 (RFC 9110, 10.1.1)
    kept = {"upgrade"} if upgrade else set()
    lines = [
        f"{request.method} {target} HTTP/1.1".encode("utf-8", "surrogateescape"),
        b"Host: " + authority.encode("utf-8", "surrogateescape"),
        *_end_to_end(request, dropped, kept),
    ]
    if authorization and request.first("authorization") is None:
        lines.append(f"Authorization: {authorization}".encode("latin-1"))
    if "trailers" in request.tokens("te"):  # trailers are forwarded if the client wants them
        lines.append(b"TE: trailers")
        options.insert(0, "TE")
    lines.append(f"Connection: {', '.join(options)}".encode("ascii"))
    return b"\r\n".join([*lines, b"", b""])


class Answer(NamedTuple):
    """The head of a response and its consequences.

    `interim`: another response follows (1xx, but not 101). `reusable`: the server keeps the
    connection open after `body`; `says_so` if it said so explicitly, and `keep_time` for how many
    seconds (None if not stated).
    """

    response: Response
    body: Body
    reusable: bool
    says_so: bool
    keep_time: float | None

    @property
    def status(self) -> int:
        return self.response.status

    @property
    def interim(self) -> bool:
        return 100 <= self.response.status < 200 and self.response.status != 101


def parse_answer(head: bytes, method: str) -> Answer:
    """The response to a `method` request, from a head that ends where `find_head_end` says.

    Raises HttpError (502).
    """
    response = parse_response(head)
    if response.status < 100:
        raise HttpError(502, "a status below 100")
    chunked, length = response_framing(method, response)
    body = Body(length, chunked=chunked, status=502)
    found = _TIMEOUT.search(response.first("keep-alive") or "")
    return Answer(
        response,
        body,
        reusable=response.keep_alive and not body.ends_with_connection,
        says_so="keep-alive" in response.tokens("connection"),
        keep_time=float(found[1]) if found else None,
    )


def forwarded_answer(answer: Answer, *, close: bool, unchunked: bool = False) -> bytes:
    """The head of a response for the client.

    `close`: the connection to the client ends after it. `unchunked`: the body is sent without
    chunk framing.
    """
    response = answer.response
    dropped: set[str] = set()
    kept: set[str] = set()
    options: list[str] = []
    if response.status < 200 or response.status == 204:
        dropped |= _FRAMING  # there is no body, whatever these headers say (RFC 9110, 8.6)
    elif unchunked:
        dropped |= _OF_CHUNKS
    if response.status in (101, 426):  # Upgrade names the new or the required protocol
        kept.add("upgrade")
        options.append("Upgrade")
    if close and not answer.interim and response.status != 101:
        options.append("close")
    lines = [
        f"HTTP/1.1 {response.status} {response.reason}".encode("latin-1"),
        *_end_to_end(response, dropped, kept),
    ]
    if options:
        lines.append(f"Connection: {', '.join(options)}".encode("ascii"))
    return b"\r\n".join([*lines, b"", b""])


def _end_to_end(message: Request | Response, dropped: set[str], kept: set[str]) -> list[bytes]:
    """The lines of the forwarded headers, spelled as received.

    `dropped`: names to drop besides those of one connection. `kept`: exceptions from the latter.
    """
    of_connection = _OF_ONE_CONNECTION.union(message.tokens("connection"))
    unwanted = (of_connection - _FRAMING - kept) | dropped
    lines = []
    lengths = 0
    for (name, value), shown in zip(message.headers, message.spelled, strict=True):
        lengths += name == "content-length"
        # Equal lengths are merged into one (RFC 9110, 8.6).
        if name not in unwanted and not (name == "content-length" and lengths > 1):
            lines.append(f"{shown}: {value}".encode("latin-1"))
    return lines
