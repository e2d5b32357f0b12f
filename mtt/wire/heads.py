"""A receive buffer that finds the end of the next HTTP head, of a request or a response."""

from __future__ import annotations

from mtt.errors import Cause
from mtt.wire.errors import WireError
from mtt.wire.http1 import (
    MAX_HEAD,
    HttpError,
    Response,
    find_head_end,
    parse_request_line,
    parse_response,
)

# Interim responses (1xx, RFC 9110, 15.2) before the final one; as many as Go skips.
MAX_INTERIM = 5


class InterimError(WireError):
    """Too many interim responses."""

    cause = Cause.HTTP


class HeadBuffer(bytearray):
    """Bytes received and not yet consumed. No byte is searched twice.

    Remove bytes only with `take` and `drop`.
    """

    __slots__ = ("_interim", "_scanned")

    def __init__(self) -> None:
        super().__init__()
        self._scanned = 0  # bytes already searched without finding the end of a head
        self._interim = 0  # number of interim responses taken

    def find_end(self) -> int:
        """The index after the head at the start of the buffer, of any size; -1 if incomplete."""
        end = find_head_end(self, self._scanned)
        if end < 0:
            self._scanned = len(self)
        return end

    def head_end(self, *, of_request: bool = False) -> int:
        """As `find_end`, with the limit MAX_HEAD.

        Raises HttpError with 431 above MAX_HEAD. With `of_request`, also raises as soon as the
        first line is not a request line: a client of another protocol may send only that and wait.
        """
        scanned = self._scanned
        end = self.find_end()
        if 0 <= end <= MAX_HEAD:
            return end
        line_end = self.find(b"\n")
        if of_request and line_end >= scanned:
            parse_request_line(bytes(self[:line_end]).removesuffix(b"\r"))
        if len(self) > MAX_HEAD:
            raise HttpError(431, f"the head is larger than {MAX_HEAD} bytes")
        return -1

    def final_response(self) -> Response | None:
        """Take the responses up to the final one and return that; None until it is complete.

        The 101 is final. Raises HttpError, and InterimError above MAX_INTERIM.
        """
        while (end := self.head_end()) >= 0:
            response = parse_response(self.take(end))
            if response.status == 101 or not 100 <= response.status < 200:
                return response
            self._interim += 1
            if self._interim > MAX_INTERIM:
                raise InterimError(f"more than {MAX_INTERIM} interim responses (1xx)")
        return None

    def take(self, size: int) -> bytes:
        """Remove and return the first `size` bytes."""
        taken = bytes(self[:size])
        self.drop(size)
        return taken

    def drop(self, size: int) -> None:
        """Discard the first `size` bytes."""
        del self[:size]
        self._scanned = 0
