"""A receive buffer that finds the end of the next HTTP head, of a request or a response."""

from __future__ import annotations

from mtt.wire.http1 import MAX_HEAD, HttpError, find_head_end, parse_request_line


class HeadBuffer(bytearray):
    """Bytes received and not yet consumed. No byte is searched twice.

    Remove bytes only with `take` and `drop`.
    """

    __slots__ = ("_scanned",)

    def __init__(self) -> None:
        super().__init__()
        self._scanned = 0  # bytes already searched without finding the end of a head

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

    def take(self, size: int) -> bytes:
        """Remove and return the first `size` bytes."""
        taken = bytes(self[:size])
        self.drop(size)
        return taken

    def drop(self, size: int) -> None:
        """Discard the first `size` bytes."""
        del self[:size]
        self._scanned = 0
