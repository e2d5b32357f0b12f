"""HTTP/1.x heads: requests and responses in, replies out (RFC 9110, RFC 9112).

Only heads: a tunnel has no use for bodies. Where the RFC leaves a choice this does what Go's
net/http does, the server of the original, because a web server that answers like no other one
gives itself away. It is stricter in one place: whatever two servers could frame differently
(request smuggling, RFC 9112, 6.3 and 11.2) is refused.

Text: methods, targets and paths are `str` by UTF-8 with `surrogateescape`, as Python decodes a
command line, so every byte sequence has exactly one spelling and can be compared to an option.
Header values are `str` by Latin-1: opaque octets (RFC 9110, 5.5), and no letter beyond ASCII
lower-cases to an ASCII one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from mtt.errors import Cause
from mtt.wire.errors import WireError

# Go allows 1 MiB, nginx 32 KiB in four buffers. Cookies and the headers that CDNs add stay far
# below; and this much may wait in memory for every connection that has not shown who it is.
MAX_HEAD = 32 * 1024

# As Go spells them; http.HTTPStatus changed some with Python 3.13.
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

# None of these can backtrack more than a step, so no input makes them slow.
_HEAD_END = re.compile(rb"\n\r?\n")
_FOLD = re.compile(rb"\r?\n[ \t]+")
_REQUEST_LINE = re.compile(
    rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([^\x00-\x20\x7f]+) HTTP/([0-9])\.([0-9])"
)
# Whether all of the line is there or not.
_REQUEST_LINE_BEGINS = re.compile(
    rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+(?: [^\x00-\x1f\x7f]*)?(?:\r?\n|\r?\Z)"
)
_STATUS_LINE = re.compile(rb"HTTP/([0-9])\.([0-9]) ([0-9]{3})(?: ([\t\x20-\x7e\x80-\xff]*))?")
_ABSOLUTE = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://([^/?]*)([^?]*)")
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NOT_VALUE = re.compile(rb"[^\t\x20-\x7e\x80-\xff]")
_NOT_HOST = re.compile(r"[^!$%&'()*+,.:;=\[\]_~0-9A-Za-z-]")
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_LENGTH = re.compile(r"[0-9]{1,18}")  # below 2**63, as in Go


class HttpError(WireError):
    """A head that is not served; `answer` is what to send before closing the connection.

    `status`: the status of the answer; 502 for a bad response, which nobody gets an answer to.
    `reason`: why, for a log; the peer sees it only if `public`, which is where Go tells it.
    """

    cause = Cause.HTTP

    def __init__(self, status: int, reason: str, *, public: bool = False) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.public = public

    @property
    def answer(self) -> bytes:
        """The whole response: no date, no length, exactly what Go writes past its handlers."""
        line = f"{self.status} {REASONS[self.status]}"
        if self.public:
            line += f": {self.reason}"
        headers = [("Content-Type", "text/plain; charset=utf-8"), ("Connection", "close")]
        body = "Unsupported transfer encoding" if self.status == 501 else line
        return encode_head(f"HTTP/1.1 {line}", headers) + body.encode("ascii")


@dataclass(slots=True, kw_only=True)
class _Head:
    version: tuple[int, int]
    headers: Headers  # names in lower case, order and repetitions kept
    spelled: list[str] = field(default_factory=list)  # the names of these as they were received

    def first(self, name: str) -> str | None:
        """The value of the first header called `name` (in lower case), None if there is none."""
        return next((value for key, value in self.headers if key == name), None)

    def elements(self, name: str) -> list[str]:
        """The elements of all comma-separated lists called `name` (RFC 9110, 5.6.1)."""
        lists = [value.split(",") for key, value in self.headers if key == name]
        return [element for parts in lists for part in parts if (element := part.strip(" \t"))]

    def tokens(self, name: str) -> list[str]:
        """The elements of these lists in lower case, for tokens that match in any case."""
        return [element.lower() for element in self.elements(name)]

    @property
    def keep_alive(self) -> bool:
        """Whether the sender expects to use the connection again (RFC 9112, 9.3)."""
        options = self.tokens("connection")
        if "close" in options:
            return False
        return self.version >= (1, 1) or "keep-alive" in options


@dataclass(slots=True, kw_only=True)
class Request(_Head):
    """The head of a request.

    `target` is as received; `path` is its path, percent-decoded once as a whole (`%2F` becomes a
    slash, `+` stays), empty for a CONNECT to a host, `*` for the server as such; `query` is what
    follows the first `?`, as received. `host` is the authority of an absolute target, else the
    Host header, else empty. `content_length` is 0 without one.
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
        """Whether body bytes follow the head."""
        return self.chunked or self.content_length > 0


@dataclass(slots=True, kw_only=True)
class Response(_Head):
    """The head of a response."""

    status: int
    reason: str


class Reply(NamedTuple):
    """What a server has to say; `encode` makes it a response to one particular request.

    `headers`: in the order of their names, as Go sends them. `content_type`: one that Go adds.
    """

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    content_type: str = ""

    @property
    def closes(self) -> bool:
        """Whether this reply is the last on its connection, however the client wishes."""
        return ("Connection", "close") in self.headers

    def encode(
        self, request: Request | None, *, date: str, close: bool, follows: int | None = 0
    ) -> bytes:
        """The response to `request`, with its own headers first, as Go's net/http writes it.

        `request`: None for what could not be read as one. `date`: the value of the Date header.
        `close`: say that the connection ends with this. `follows`: the length of another body that
        follows, None for chunks. A HEAD request gets the same head alone (RFC 9110, 9.3.2).
        """
        http11 = request is None or request.version >= (1, 1)
        is_head = request is not None and request.method == "HEAD"
        headers = [*self.headers, ("Date", date)]
        if follows is None:  # older clients know no chunks: the body ends with the connection
            headers += [("Transfer-Encoding", "chunked")] if http11 else []
        # For HEAD, an empty body may mean that nobody made one: Go then states no length.
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
    """The head of a response whose first line is `start`."""
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers])
    return f"{start}\r\n{lines}\r\n".encode("latin-1")


def text_reply(status: int, text: str, *extra: tuple[str, str]) -> Reply:
    """A one-line text as Go's `http.Error` sends it; `extra` are further headers."""
    headers = [
        ("Content-Type", "text/plain; charset=utf-8"),
        ("X-Content-Type-Options", "nosniff"),
        *extra,
    ]
    return Reply(status, tuple(sorted(headers)), f"{text}\n".encode())


def find_head_end(buffer: bytes | bytearray, start: int = 0) -> int:
    """The index behind the empty line that ends a head, -1 if it has not come yet.

    `start`: how many bytes an earlier call has seen in vain. Lines may end in a bare LF, which
    RFC 9112 (2.2) permits a recipient and Go does.
    """
    found = _HEAD_END.search(buffer, max(0, start - 2))
    return found.end() if found else -1


def is_host(value: str) -> bool:
    """Whether `value` may stand in a Host header."""
    return not _NOT_HOST.search(value)


def may_be_request(data: bytes) -> bool:
    """Whether `data`, be it the beginning of a line only, looks like a request line at first sight.

    `parse_request_line` judges whole lines, and more strictly.
    """
    return _REQUEST_LINE_BEGINS.match(data) is not None


def parse_request_line(line: bytes) -> tuple[str, bytes, tuple[int, int]]:
    """Method, target and version from the first line, without its line end.

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

    `userinfo`: whether the Host header may begin with `user:password@`, as clients of proxies copy
    it from their URI.

    Raises HttpError with the status that Go's net/http answers, and nothing else.
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
    """Whether the body of a response to a `method` request is chunked, and else its length.

    None for the length: it ends with the connection (RFC 9112, 6.3). Raises HttpError (502) where
    two recipients could see different ends.
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
        if not _TOKEN.fullmatch(name):
            # Go lets a blank in the name through its first check: `Host : x` gets told why.
            blank = bool(_TOKEN.fullmatch(name.replace(b" ", b"")))
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


def _framing(
    version: tuple[int, int], headers: Headers, status: int
) -> tuple[bool, int | None]:
    """Whether the body is chunked, and its Content-Length (RFC 9112, 6.1-6.3).

    Raises HttpError with `status`; with 501 where that is meant for such a request.
    """
    codings = [value for name, value in headers if name == "transfer-encoding"]
    lengths = {value for name, value in headers if name == "content-length"}
    if codings:
        if [coding.lower() for coding in codings] != ["chunked"]:
            unsupported = 501 if status == 400 else status
            raise HttpError(unsupported, "unsupported transfer encoding")
        # Go takes these two. Servers disagree on them, so a front proxy could be smuggled past.
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
