"""What visitors meet without a fallback site: an nginx, with our server behind it.

A prober sees TLS of OpenSSL. A server of Go, whose texts the replies have, does not speak that; an
nginx that forwards requests to a program in Go does. So the heads are nginx's, with
`server_tokens off`, and so is what it says by itself, to requests that it does not forward.
"""

from __future__ import annotations

import re

from mtt.wire import http1
from mtt.wire.http1 import REASONS, HttpError, Reply, Request, encode_head

PLAIN_HTTP = "The plain HTTP request was sent to HTTPS port"
_LINE = re.compile(rb"[A-Z_-]*(?:\Z| (?:\Z|/|[A-Za-z][A-Za-z0-9+.-]*(?:\Z|:(?:\Z|/(?:\Z|/)))))")
_TOO_LARGE = "Request Header Or Cookie Too Large"


def may_be_request(data: bytes | bytearray) -> bool:
    """Whether nginx goes on reading what begins like this; else it answers 400 at once."""
    return _LINE.match(data) is not None and http1.may_be_request(bytes(data))


def encode(reply: Reply, request: Request, *, date: str, close: bool) -> bytes:
    """The response to `request`, as nginx passes it on. See `Reply.encode`."""
    first = [(name, value) for name, value in reply.headers if name == "Content-Type"]
    others = [each for each in reply.headers if each[0] not in ("Content-Type", "Connection")]
    return _response(
        reply.status,
        [*first, ("Content-Length", f"{len(reply.body)}")],
        others,
        b"" if request.method == "HEAD" else reply.body,
        date=date,
        close=close,
    )


def error_response(error: HttpError, *, date: str) -> bytes:
    """What nginx answers itself, before it closes the connection."""
    if error.status == 431:
        return _error(400, _TOO_LARGE, date)
    return _error(error.status, "", date)


def plain_http_reply() -> Reply:
    """The answer to a request without TLS."""
    headers = (("Content-Type", "text/html"), ("Connection", "close"))
    return Reply(400, headers, _page(400, PLAIN_HTTP))


def _error(status: int, reason: str, date: str) -> bytes:
    page = _page(status, reason)
    headers = [("Content-Type", "text/html"), ("Content-Length", f"{len(page)}")]
    return _response(status, headers, [], page, date=date, close=True)


def _page(status: int, reason: str) -> bytes:
    heading = f"{status} {REASONS[status]}"
    title = f"{status} {reason}" if reason else heading
    lines = [
        "<html>",
        f"<head><title>{title}</title></head>",
        "<body>",
        f"<center><h1>{heading}</h1></center>",
        *([f"<center>{reason}</center>"] if reason else []),
        "<hr><center>nginx</center>",
        "</body>",
        "</html>",
        "",
    ]
    return "\r\n".join(lines).encode()


def _response(
    status: int,
    headers: list[tuple[str, str]],
    others: list[tuple[str, str]],
    body: bytes,
    *,
    date: str,
    close: bool,
) -> bytes:
    connection = ("Connection", "close" if close else "keep-alive")
    lines = [("Server", "nginx"), ("Date", date), *headers, connection, *others]
    # Whatever the version of the request.
    return encode_head(f"HTTP/1.1 {status} {REASONS[status]}", lines) + body
