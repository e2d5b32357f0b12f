"""HTTP/1.x heads: requests and responses in, replies out (RFC 9110, RFC 9112).

Bodies are in `httpbody`. Where the RFC leaves a choice, this follows Go's net/http, the server of
the original: a web server with unique answers is easy to fingerprint. It is stricter in one point:
messages that two servers could frame differently (request smuggling, RFC 9112, 6.3 and 11.2) are
refused.

Methods, targets and paths are decoded as UTF-8 with `surrogateescape`, as Python decodes a command
line, so every byte sequence has exactly one `str` and can be compared to an option. Header values
are decoded as Latin-1: they are opaque octets (RFC 9110, 5.5), and no letter beyond ASCII
lower-cases to an ASCII letter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from mtt.errors import Cause
from mtt.wire.errors import WireError

# Go allows 1 MiB, nginx 32 KiB in four buffers. Cookies and headers added by CDNs stay far below.
# Every unauthenticated connection may hold this much memory.
MAX_HEAD = 32 * 1024
MAX_REASON = 100  # characters of a reason phrase in an error

# Go's spelling; http.HTTPStatus changed some phrases in Python 3.13.
REASONS = {
    101: "Switching Protocols",
    200: "OK",
    301: "Moved Permanently",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    407: "Proxy Authentication Required",
    409: "Conflict",
    413: "Request Entity Too Large",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
    505: "HTTP Version Not Supported",
}

Headers = list[tuple[str, str]]

_PLAIN_TEXT = ("Content-Type", "text/plain; charset=utf-8")

TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # RFC 9110, 5.6.2

# None of these patterns backtracks more than one step, so no input makes them slow.
_HEAD_END = re.compile(rb"\n\r?\n")
_FOLD = re.compile(rb"\r?\n[ \t]+")
_REQUEST_LINE = re.compile(rb"(%s) ([^\x00-\x20\x7f]+) HTTP/([0-9])\.([0-9])" % TOKEN)
# A whole request line or a prefix of one.
_REQUEST_LINE_BEGINS = re.compile(rb"%s(?: [^\x00-\x1f\x7f]*)?(?:\r?\n|\r?\Z)" % TOKEN)
_STATUS_LINE = re.compile(rb"HTTP/([0-9])\.([0-9]) ([0-9]{3})(?: ([\t\x20-\x7e\x80-\xff]*))?")
_ABSOLUTE = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://([^/?]*)([^?]*)")
_NAME = re.compile(TOKEN)
_NOT_VALUE = re.compile(rb"[^\t\x20-\x7e\x80-\xff]")
_NOT_HOST = re.compile(r"[^!$%&'()*+,.:;=\[\]_~0-9A-Za-z-]")
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_LENGTH = re.compile(r"[0-9]{1,18}")  # below 2**63, as in Go


class HttpError(WireError):
    """The head is refused; send `answer`, then close the connection.

    `status`: the status of the answer; 502 for an invalid response, which gets no answer.
    `reason`: the cause, for the log. The peer sees it only if `public`, which is where Go shows it.
    """

    cause = Cause.HTTP

    def __init__(self, status: int, reason: str, *, public: bool = False) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.public = public

    @property
    def answer(self) -> bytes:
        """The whole response, without date or length: what Go writes outside its handlers."""
        line = f"{self.status} {REASONS[self.status]}"
        if self.public:
            line += f": {self.reason}"
        body = "Unsupported transfer encoding" if self.status == 501 else line
        head = encode_head(f"HTTP/1.1 {line}", [_PLAIN_TEXT, ("Connection", "close")])
        return head + body.encode("ascii")


@dataclass(slots=True, kw_only=True)
class _Head:
    version: tuple[int, int]
    headers: Headers  # names in lower case, order and repetitions kept
    spelled: list[str] = field(default_factory=list)  # their names as received

    def first(self, name: str) -> str | None:
        """The value of the first header called `name` (in lower case), or None."""
        return next((value for key, value in self.headers if key == name), None)

    def elements(self, name: str) -> list[str]:
        """The elements of all comma-separated lists called `name` (RFC 9110, 5.6.1)."""
        lists = [value.split(",") for key, value in self.headers if key == name]
        return [element for parts in lists for part in parts if (element := part.strip(" \t"))]

    def tokens(self, name: str) -> list[str]:
        """As `elements`, in lower case, for case-insensitive tokens."""
        return [element.lower() for element in self.elements(name)]

    @property
    def keep_alive(self) -> bool:
        """Whether the sender keeps the connection open afterwards (RFC 9112, 9.3)."""
        options = self.tokens("connection")
        return "close" not in options and (self.version >= (1, 1) or "keep-alive" in options)


@dataclass(slots=True, kw_only=True)
class Request(_Head):
    """The head of a request.

    `target` is as received. `path` is its path, percent-decoded once as a whole (`%2F` becomes a
    slash, `+` stays); empty for a CONNECT to a host, `*` for the server itself. `query` is the part
    after the first `?`, as received. `host` is the authority of an absolute target, else the Host
    header, else empty. `content_length` is 0 if the request has none.
    """

    method: str
    target: str
    path: str
    query: str
    host: str
    content_length: int
    chunked: bool

    @property
    def has_body(self) -> bool:
        """Whether a body follows the head."""
        return self.chunked or self.content_length > 0


@dataclass(slots=True, kw_only=True)
class Response(_Head):
    """The head of a response."""

    status: int
    reason: str

    @property
    def answer(self) -> str:
        """Status and reason, for errors; the peer may have sent kilobytes."""
        return f"{self.status} {self.reason[:MAX_REASON]}".rstrip()


class Reply(NamedTuple):
    """A server's answer; `encode` turns it into the response to a particular request.

    `headers`: sorted by name, as Go sends them. `content_type`: one that Go would add by itself.
    """

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    content_type: str = ""

    @property
    def closes(self) -> bool:
        """Whether this reply is the last on its connection, whatever the client asks for."""
        return ("Connection", "close") in self.headers

    def encode(
        self, request: Request | None, *, date: str, close: bool, follows: int | None = 0
    ) -> bytes:
        """The response to `request`, the reply's own headers first, as Go's net/http writes it.

        `request`: None if it could not be parsed. `date`: the value of the Date header. `close`:
        announce that the connection closes. `follows`: the length of a body sent separately, None
        for chunks. A HEAD request gets the same head only (RFC 9110, 9.3.2).
        """
        http11 = request is None or request.version >= (1, 1)
        is_head = request is not None and request.method == "HEAD"
        headers = [*self.headers, ("Date", date)]
        if follows is None:  # HTTP/1.0 has no chunks: the body ends with the connection
            headers += [("Transfer-Encoding", "chunked")] if http11 else []
        # For HEAD, an empty body may mean that none was produced: Go then states no length.
        elif (length := follows or len(self.body)) or not is_head:
            headers.append(("Content-Length", str(length)))
        if self.content_type:
            headers.append(("Content-Type", self.content_type))
        if close and http11 and not self.closes:
            headers.append(("Connection", "close"))
        elif not close and not http11:
            headers.append(("Connection", "keep-alive"))
        head = encode_head(f"HTTP/1.{int(http11)} {self.status} {REASONS[self.status]}", headers)
        return head if is_head else head + self.body


def encode_head(start: str, headers: Iterable[tuple[str, str]]) -> bytes:
    """The head of a response with the status line `start`."""
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers])
    return f"{start}\r\n{lines}\r\n".encode("latin-1")


def text_reply(status: int, text: str, *extra: tuple[str, str]) -> Reply:
    """A one-line text as sent by Go's `http.Error`; `extra`: more headers."""
    headers = [_PLAIN_TEXT, ("X-Content-Type-Options", "nosniff"), *extra]
    return Reply(status, tuple(sorted(headers)), f"{text}\n".encode())


def find_head_end(buffer: bytes | bytearray, start: int = 0) -> int:
    """The index after the empty line that ends a head; -1 if it has not arrived.

    `start`: number of bytes already searched by an earlier call. Lines may end in a bare LF, which
    RFC 9112 (2.2) permits a recipient to accept, and Go does.
    """
    found = _HEAD_END.search(buffer, max(0, start - 2))
    return found.end() if found else -1


def is_host(value: str) -> bool:
    """Whether `value` is allowed in a Host header."""
    return not _NOT_HOST.search(value)


def may_be_request(data: bytes) -> bool:
    """Whether `data` looks like a request line or a prefix of one.

    `parse_request_line` checks whole lines, and more strictly.
    """
    return _REQUEST_LINE_BEGINS.match(data) is not None


def parse_request_line(line: bytes) -> tuple[str, bytes, tuple[int, int]]:
    """Method, target and version from the first line, which has no line end.

    Raises HttpError: 400 if it is not HTTP, 505 if it is not HTTP/1.x.
    """
    found = _REQUEST_LINE.fullmatch(line)
    if not found:
        raise HttpError(400, "malformed request line")
    version = int(found[3]), int(found[4])
    if version[0] != 1:
        raise HttpError(505, "unsupported protocol version", public=True)
    return found[1].decode("ascii"), found[2], version


def parse_request(head: bytes, *, userinfo: bool = False) -> Request:
    """A `Request` from a head that ends where `find_head_end` says.

    `userinfo`: whether the Host header may start with `user:password@`, which clients of proxies
    copy from their URI.

    Raises only HttpError, with the status that Go's net/http answers with.
    """
    line, headers, spelled = _split(head, 400)
    method, target, version = parse_request_line(line)
    authority, path, query = _parse_target(method, target)
    chunked, length = _framing(version, headers, 400)
    hosts = [value for name, value in headers if name == "host"]
    if not hosts and version >= (1, 1) and method != "CONNECT":
        raise HttpError(400, "missing required Host header", public=True)
    if len(hosts) > 1:
        raise HttpError(400, "too many Host headers", public=True)
    if userinfo:
        hosts = [host.rpartition("@")[2] for host in hosts]
    if hosts and not is_host(hosts[0]):
        raise HttpError(400, "malformed Host header", public=True)
    return Request(
        version=version,
        headers=headers,
        spelled=spelled,
        method=method,
        target=_text(target),
        path=_text(path),
        query=_text(query),
        host=authority or (hosts[0] if hosts else ""),
        content_length=length or 0,
        chunked=chunked,
    )


def parse_response(head: bytes) -> Response:
    """A `Response` from a head that ends where `find_head_end` says. Raises HttpError (502)."""
    line, headers, spelled = _split(head, 502)
    found = _STATUS_LINE.fullmatch(line)
    if not found:
        raise HttpError(502, "malformed status line")
    return Response(
        version=(int(found[1]), int(found[2])),
        headers=headers,
        spelled=spelled,
        status=int(found[3]),
        reason=(found[4] or b"").decode("latin-1"),
    )


def response_framing(method: str, response: Response) -> tuple[bool, int | None]:
    """Whether the body of a response to a `method` request is chunked, and otherwise its length.

    A length of None: the body ends with the connection (RFC 9112, 6.3). Raises HttpError (502) if
    two recipients could disagree on the end.
    """
    status = response.status
    if status < 200 or status == 204:
        return False, 0
    chunked, length = _framing(response.version, response.headers, 502)
    if method == "HEAD" or status == 304:
        return False, 0
    return chunked, length


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _split(head: bytes, status: int) -> tuple[bytes, Headers, list[str]]:
    """The first line, the headers, and their names as received. Raises HttpError with `status`."""
    if find_head_end(head) != len(head):
        raise HttpError(status, "not a complete head")
    first, _, block = head.partition(b"\n")
    if block[:1] in (b" ", b"\t"):
        raise HttpError(status, "the first header line is a continuation")
    headers: Headers = []
    spelled: list[str] = []
    # Folded lines are obsolete, but Go joins them (RFC 9112, 5.2).
    for line in _FOLD.sub(b" ", block).split(b"\n"):
        line = line.removesuffix(b"\r")
        if not line:
            break
        name, colon, value = line.partition(b":")
        value = value.strip(b" \t")
        if not colon or _NOT_VALUE.search(value):
            raise HttpError(status, "malformed header line")
        if not _NAME.fullmatch(name):
            # Go's first check accepts a space in the name, so `Host : x` gets the public reason.
            blank = bool(_NAME.fullmatch(name.replace(b" ", b"")))
            raise HttpError(status, "invalid header name", public=blank)
        spelled.append(name.decode("ascii"))
        headers.append((spelled[-1].lower(), value.decode("latin-1")))
    return first.removesuffix(b"\r"), headers, spelled


def _parse_target(method: str, target: bytes) -> tuple[str, bytes, bytes]:
    """Authority, percent-decoded path and query of a target (RFC 9112, 3.2)."""
    authority, rest = b"", target
    if target == b"*":
        return "", b"*", b""
    if not target.startswith(b"/"):
        if method == "CONNECT":
            return _authority(target), b"", b""
        absolute = _ABSOLUTE.match(target)
        if not absolute:
            raise HttpError(400, "malformed request target")
        authority, rest = absolute[1], target[absolute.start(2) :]
    path, _, query = rest.partition(b"?")
    if _BAD_ESCAPE.search(path):
        raise HttpError(400, "malformed percent-encoding in the request target")
    return _authority(authority), unquote_to_bytes(path), query


def _authority(raw: bytes) -> str:
    host = raw.rpartition(b"@")[2].decode("latin-1")
    if not is_host(host):
        raise HttpError(400, "malformed request target")
    return host


def _framing(version: tuple[int, int], headers: Headers, status: int) -> tuple[bool, int | None]:
    """Whether the body is chunked, and its Content-Length (RFC 9112, 6.1-6.3).

    Raises HttpError with `status`, or with 501 for an unknown transfer coding in a request.
    """
    codings = [value for name, value in headers if name == "transfer-encoding"]
    lengths = {value for name, value in headers if name == "content-length"}
    if codings:
        if [coding.lower() for coding in codings] != ["chunked"]:
            unsupported = 501 if status == 400 else status
            raise HttpError(unsupported, "unsupported transfer encoding")
        # Go accepts these two. Servers disagree on them, which allows smuggling past a front proxy.
        if lengths:
            raise HttpError(status, "both Transfer-Encoding and Content-Length")
        if version < (1, 1):
            raise HttpError(status, "Transfer-Encoding in HTTP/1.0")
        return True, 0
    if len(lengths) > 1:
        raise HttpError(status, "conflicting Content-Length headers")
    if not lengths:
        return False, None
    length = lengths.pop()
    if not _LENGTH.fullmatch(length):
        raise HttpError(status, "malformed Content-Length")
    return False, int(length)
