"""Answers to visitors without a fallback site: those of an nginx that forwards to a Go server.

The replies have Go's texts, but a probe sees OpenSSL's TLS, which no Go server has. So the heads
are nginx's, with `server_tokens off`, and so are the answers to requests that it does not forward.
"""

from __future__ import annotations

import re

from mtt.wire import http1
from mtt.wire.heads import HeadBuffer
from mtt.wire.http1 import REASONS, HttpError, Reply, Request, encode_head
from mtt.wire.upgrade import MAX_LINE

PLAIN_HTTP = "The plain HTTP request was sent to HTTPS port"
_TOO_LARGE = "Request Header Or Cookie Too Large"
_LINE = re.compile(rb"[A-Z_-]*(?:\Z| (?:\Z|/|[A-Za-z][A-Za-z0-9+.-]*(?:\Z|:(?:\Z|/(?:\Z|/)))))")


def has_begun(buffer: HeadBuffer) -> bool:
    """Whether a request has begun; drops empty lines before it.

    Raises HttpError (400) where nginx answers that immediately, instead of reading on.
    """
    if buffer.startswith((b"\r", b"\n")):
        buffer.drop(len(buffer) - len(buffer.lstrip(b"\r\n")))
    line = bytes(buffer[:MAX_LINE])
    if line and not (_LINE.match(line) and http1.may_be_request(line)):
        raise HttpError(400, "not an HTTP request")
    return bool(line)


def encode(
    reply: Reply, request: Request | None, *, date: str, close: bool, follows: int | None = 0
) -> bytes:
    """The response to `request` as nginx forwards it. See `Reply.encode`."""
    framing = [("Content-Length", str(follows or len(reply.body)))]
    if follows is None:
        http11 = request is not None and request.version >= (1, 1)
        framing = [("Transfer-Encoding", "chunked")] if http11 else []
    headers = [
        ("Server", "nginx"),
        ("Date", date),
        *(each for each in reply.headers if each[0] == "Content-Type"),
        *framing,
        ("Connection", "close" if close else "keep-alive"),
        *(each for each in reply.headers if each[0] not in ("Content-Type", "Connection")),
    ]
    # HTTP/1.1, whatever the version of the request.
    head = encode_head(f"HTTP/1.1 {reply.status} {REASONS[reply.status]}", headers)
    is_head = request is not None and request.method == "HEAD"
    return head if is_head else head + reply.body


def error_reply(status: int, _reason: str = "") -> Reply:
    """nginx's own error page, which gives no reason; nginx then closes the connection."""
    return page(400, _TOO_LARGE) if status == 431 else page(status)


def page(status: int, reason: str = "") -> Reply:
    """One of nginx's own pages."""
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
    headers = (("Content-Type", "text/html"), ("Connection", "close"))
    return Reply(status, headers, "\r\n".join(lines).encode())
