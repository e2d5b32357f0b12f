"""Where the body of an HTTP/1.1 message ends (RFC 9112, 6 and 7.1).

Bodies are forwarded unchanged, chunks and trailers included, so only the framing is decoded. The
parser is stricter than the RFC requires: a body whose end the next server or client sees elsewhere
allows request smuggling.
"""

from __future__ import annotations

import re

from mtt.wire.http1 import MAX_HEAD, TOKEN, HttpError

Data = bytes | bytearray | memoryview

# A line of a chunked body or its trailer. Go allows 4096 for the former; trailers are headers.
MAX_LINE = 8192
MAX_TRAILERS = MAX_HEAD  # bytes, all together
# Lines between chunks are usually below this, so a copy of this size is searched first.
_SHORT_LINE = 32

_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n\0]*)?\r\n")
_TRAILER = re.compile(rb"(%s):[^\r\n\0]*\r\n" % TOKEN)
# These determine framing and routing; a recipient that merges trailers into headers would decide
# both anew (RFC 9110, 6.5.1).
_NOT_IN_TRAILERS = frozenset({b"content-length", b"host", b"transfer-encoding"})


class Body:
    """Finds the end of a body.

    `length`: None if the body ends with the connection, or is `chunked`. `status`: that of the
    HttpError for a malformed body, 400 for a request, 502 for a response.
    """

    __slots__ = ("_line", "_status", "_trailers", "_wanted", "chunked", "left", "over")

    def __init__(self, length: int | None, *, chunked: bool = False, status: int = 400) -> None:
        self.left = length or 0  # bytes to come of the body, or of the current chunk, if known
        self.chunked = chunked
        self._status = status
        self._line = b""  # an incomplete line
        self._trailers = 0  # bytes of trailers so far
        # Expected next: "all" (until the connection ends), "data", or a line: "size", "end" (of a
        # chunk), "trailer".
        self._wanted = "size" if chunked else "all" if length is None else "data"
        self.over = length == 0 and not chunked  # the whole body has been consumed

    @property
    def ends_with_connection(self) -> bool:
        """Whether the body ends only with the connection."""
        return self._wanted == "all"

    def take(self, data: Data, content: bytearray | None = None) -> int:
        """The number of bytes at the start of `data` that belong to the body.

        Appends them, without chunk framing, to `content`. Raises HttpError with `status`, or with
        431 for too many trailers in a request.
        """
        at, size = 0, len(data)
        while at < size and not self.over:
            if self._wanted == "all":
                at = size
                if content is not None:
                    content += data
            elif self.left:
                step = min(self.left, size - at)
                if content is not None:
                    content += data[at : at + step]
                self.left -= step
                at += step
                if not self.left:
                    self._wanted = "end"
                    self.over = not self.chunked
            else:
                at += self._take_line(data, at)
        return at

    def _take_line(self, data: Data, at: int) -> int:
        """Consume a line or the part received so far, and return its size in bytes."""
        piece = bytes(data[at : at + _SHORT_LINE])
        end = piece.find(b"\n") + 1
        if not end and len(data) - at > len(piece):
            piece = bytes(data[at : at + MAX_LINE + 1])
            end = piece.find(b"\n") + 1
        piece = piece[: end or len(piece)]
        line = self._line + piece if self._line else piece
        if len(line) > MAX_LINE:
            raise HttpError(self._status, "too long a line in a chunked body")
        self._line = b"" if end else line
        if end:
            self._judge(line)
        return len(piece)

    def _judge(self, line: bytes) -> None:
        if self._wanted == "size":
            found = _CHUNK.fullmatch(line)
            if not found:
                raise HttpError(self._status, "malformed chunk")
            self.left = int(found[1], 16)
            if not self.left:
                self._wanted = "trailer"
        elif line == b"\r\n":
            self.over = self._wanted == "trailer"
            self._wanted = "size"
        elif self._wanted == "end":
            raise HttpError(self._status, "malformed chunk")
        else:
            found = _TRAILER.fullmatch(line)
            if not found or found[1].lower() in _NOT_IN_TRAILERS:
                raise HttpError(self._status, "malformed trailer")
            self._trailers += len(line)
            if self._trailers > MAX_TRAILERS:
                status = 431 if self._status == 400 else self._status
                raise HttpError(status, f"the trailers are larger than {MAX_TRAILERS} bytes")
