"""Heads of HTTP messages as a proxy passes them on: what is of one connection only stays behind.

RFC 9110, 7.6.1: Connection, what it names, and the headers that have always been about a connection
are replaced by the proxy's own. There is no Via, for it would tell every web site of the proxy.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from mtt.wire.http1 import (
    Headers,
    HttpError,
    Request,
    Response,
    parse_response,
    response_framing,
)
from mtt.wire.httpbody import Body

_OF_ONE_CONNECTION = frozenset({
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection",
    "te", "upgrade",
})  # fmt: skip
# Needed to find the end of a message, whatever Connection says of it.
_FRAMING = frozenset({"content-length", "transfer-encoding"})
_OF_CHUNKS = frozenset({"transfer-encoding", "trailer"})
# A connection that becomes HTTP/2 carries requests for others as well, which its client takes for
# something between itself and the proxy.
_NEVER_UPGRADED_TO = frozenset({"h2", "h2c"})
_TIMEOUT = re.compile(r"(?:^|[,; ])timeout *= *\"?([0-9]{1,6})", re.IGNORECASE)


def is_persistent(request: Request) -> bool:
    """Whether the connection with a proxy's client may go on after the answer to `request`.

    Not for HTTP/1.0: what such a client says about that may be meant for someone behind another
    proxy, which has passed it on (RFC 9112, 9.3).
    """
    return (
        request.version >= (1, 1)
        and request.keep_alive
        and "close" not in request.tokens("proxy-connection")
    )


def asks_for_upgrade(request: Request) -> bool:
    """Whether `request` asks for another protocol, such as WebSocket, that may be tunnelled."""
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

    `authority` replaces the Host header (RFC 9112, 3.2.2), and `authorization` becomes an
    Authorization header if there is none.
    """
    upgrade = asks_for_upgrade(request)
    dropped = {"host"}
    options = ["Upgrade" if upgrade else "keep-alive" if is_persistent(request) else "close"]
    if request.version < (1, 1):
        dropped.add("expect")  # its client would not understand the answer (RFC 9110, 10.1.1)
    kept = {"upgrade"} if upgrade else set()
    lines = [
        f"{request.method} {target} HTTP/1.1".encode("utf-8", "surrogateescape"),
        b"Host: " + authority.encode("utf-8", "surrogateescape"),
        *_end_to_end(request.headers, request.spelled, request.tokens("connection"), dropped, kept),
    ]
    if authorization and request.first("authorization") is None:
        lines.append(f"Authorization: {authorization}".encode("latin-1"))
    if "trailers" in request.tokens("te"):  # the trailers pass, if the client wants any
        lines.append(b"TE: trailers")
        options.insert(0, "TE")
    lines.append(f"Connection: {', '.join(options)}".encode("ascii"))
    return b"\r\n".join([*lines, b"", b""])


class Answer(NamedTuple):
    """The head of a response, and what follows from it.

    `interim`: another response follows (1xx, but not 101). `reusable`: the server keeps its
    connection when `body` is over, `says_so` if it has said that, and `keep_time` for how many
    seconds (None if it did not say).
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

    `close`: the connection with the client ends behind it. `unchunked`: the body goes without the
    framing of chunks.
    """
    response = answer.response
    dropped: set[str] = set()
    kept: set[str] = set()
    options: list[str] = []
    if response.status < 200 or response.status == 204:
        dropped |= _FRAMING  # there is no body, whatever they say (RFC 9110, 8.6)
    elif unchunked:
        dropped |= _OF_CHUNKS
    if response.status in (101, 426):  # what it is changed to, or has to be
        kept.add("upgrade")
        options.append("Upgrade")
    if close and not answer.interim and response.status != 101:
        options.append("close")
    lines = [
        f"HTTP/1.1 {response.status} {response.reason}".encode("latin-1"),
        *_end_to_end(
            response.headers, response.spelled, response.tokens("connection"), dropped, kept
        ),
    ]
    if options:
        lines.append(f"Connection: {', '.join(options)}".encode("ascii"))
    return b"\r\n".join([*lines, b"", b""])


def _end_to_end(
    headers: Headers, spelled: list[str], options: list[str], dropped: set[str], kept: set[str]
) -> list[bytes]:
    """The lines of the headers that are passed on, spelled as they were received.

    `options`: the names in Connection. `dropped`: further names. `kept`: these stay all the same.
    """
    unwanted = ((_OF_ONE_CONNECTION | set(options)) - _FRAMING - kept) | dropped
    lines = []
    lengths = 0
    for (name, value), shown in zip(headers, spelled, strict=True):
        lengths += name == "content-length"
        # Of equal lengths one is enough (RFC 9110, 8.6).
        if name not in unwanted and not (name == "content-length" and lengths > 1):
            lines.append(f"{shown}: {value}".encode("latin-1"))
    return lines
