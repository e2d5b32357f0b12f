"""HTTP without TLS on a port for TLS, answered as by nginx.

The fallback site serves these visitors too, and judges every byte. Only a complete request must be
refused: nginx answers "400 The plain HTTP request was sent to HTTPS port". So the site gets one
more header, which no server accepts, and its page for bad requests is changed into that answer.
Pages of other servers are not changed.
"""

from __future__ import annotations

from collections.abc import Callable

from mtt.http import nginx
from mtt.http.fallback import Visit
from mtt.layers.base import Data, StreamProtocol, StreamTransport
from mtt.wire.heads import HeadBuffer
from mtt.wire.http1 import MAX_HEAD, HttpError, parse_request

# nginx, Apache and Go answer this with 400 immediately, whether or not the request has a Host.
_BAD = b"Host: a/b\r\n\r\n"
_NO_VERSION = b" HTTP/1.1\r\n" + _BAD  # after a request line of HTTP/0.9
_TITLE = b"<title>400 Bad Request</title>"
_HEADING = b"<center><h1>400 Bad Request</h1></center>\r\n"
_REASON = nginx.PLAIN_HTTP.encode()
_NGINX = b"<hr><center>nginx"
_LENGTH = b"\r\nContent-Length: "
# nginx's page has less than 400 bytes, some 1000 with padding for old browsers.
_MAX_PAGE = 8192


class _PlainInspector:
    """Passes data on, and ends a complete request so that the site refuses it."""

    __slots__ = ("_head", "_over", "_passed", "is_committed", "is_head", "is_valid")

    def __init__(self) -> None:
        self._head = HeadBuffer()
        self._passed = 0
        self._over = False
        self.is_committed = False
        self.is_valid = False  # the request is complete, and nginx would serve it with TLS
        self.is_head = False  # its method is HEAD

    @property
    def unfinished(self) -> bytes:
        return b"" if self._over else bytes(self._head)

    def take(self, data: bytes, eof: bool) -> tuple[bytes, bytes | None]:
        if self._over:
            return b"", None
        self.is_committed = True
        # Empty lines before a request are ignored.
        rest = data if self._head else data.lstrip(b"\r\n")
        return data[: len(data) - len(rest)] + self._take(rest), None

    def _take(self, data: bytes) -> bytes:
        head = self._head
        head += data
        line_end = head.find(b"\n")
        if line_end >= 0 and b" HTTP/" not in head[:line_end]:
            return self._end(len(head[:line_end].removesuffix(b"\r")), _NO_VERSION)
        end = head.find_end()
        if end >= 0:
            self._judge(bytes(head[:end]))
            # The empty line is two bytes or one.
            return self._end(end - (2 if head[end - 2] == 0x0D else 1), _BAD)
        passed = bytes(head[self._passed :])
        self._passed = len(head)
        if len(head) > MAX_HEAD:  # the site has already refused it
            self._over = True
        return passed

    def _end(self, limit: int, bad: bytes) -> bytes:
        self._over = True
        return bytes(self._head[self._passed : limit]) + bad

    def _judge(self, head: bytes) -> None:
        try:
            request = parse_request(head)
        except HttpError:
            return
        self.is_valid = request.method not in ("CONNECT", "TRACE")
        self.is_head = request.method == "HEAD"


class PlainVisit(Visit):
    """The transport of a visitor without TLS, for a relay to the site."""

    __slots__ = ("_page", "_plain")

    def __init__(
        self, upper: StreamProtocol, *, on_settled: Callable[[StreamTransport], object]
    ) -> None:
        self._plain = _PlainInspector()
        self._page: bytearray | None = bytearray()
        super().__init__(upper, self._plain, on_settled=on_settled)

    def write(self, data: Data | bytearray) -> None:
        if self._page is None or not self._plain.is_valid:
            super().write(data)
            return
        self._page += data
        if len(self._page) > _MAX_PAGE:
            self._flush()

    def close(self) -> None:
        self._flush()
        super().close()

    def _flush(self) -> None:
        page, self._page = self._page, None
        if page:
            super().write(https_page(bytes(page), head_only=self._plain.is_head))


def https_page(page: bytes, *, head_only: bool = False) -> bytes:
    """nginx's page for plain HTTP, made from its page for bad requests; other pages unchanged."""
    head, _, body = page.partition(b"\r\n\r\n")
    if head_only:
        is_nginx = b"\r\nServer: nginx" in head and not body
    else:
        is_nginx = _NGINX in body and _TITLE in body and _HEADING in body
    before, length, after = head.partition(_LENGTH)
    digits, line_end, rest = after.partition(b"\r\n")
    if not (is_nginx and digits.isdigit() and head.startswith(b"HTTP/1.1 400 ")):
        return page
    title = b"<title>400 %s</title>" % _REASON
    line = b"<center>%s</center>\r\n" % _REASON
    size = int(digits) + len(title) - len(_TITLE) + len(line)
    head = before + length + b"%d" % size + line_end + rest
    body = body.replace(_TITLE, title, 1).replace(_HEADING, _HEADING + line, 1)
    return head + b"\r\n\r\n" + body
