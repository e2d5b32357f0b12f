"""Where the next head ends in what has come of a connection, for requests and responses alike."""

from __future__ import annotations

from mtt.wire.http1 import MAX_HEAD, HttpError, find_head_end, parse_request_line


class HeadBuffer(bytearray):
    """What has come and was not taken yet. No byte of it is searched twice.

    Take from it with `take` and `drop` alone.
    """

    __slots__ = ("_scanned",)

    def __init__(self) -> None:
        super().__init__()
        self._scanned = 0  # bytes that hold no end of a head

    def find_end(self) -> int:
        """The index behind the head at the beginning, however long; -1 if it has not come yet."""
        end = find_head_end(self, self._scanned)
        if end < 0:
            self._scanned = len(self)
        return end

    def head_end(self, *, of_request: bool = False) -> int:
        """As `find_end`, for a head that is wanted.

        Raises HttpError, 431 above MAX_HEAD; with `of_request` also as soon as the first line
        shows that this is no request: clients of other protocols wait for an answer to theirs.
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
        """Take the first `size` bytes."""
        taken = bytes(self[:size])
        self.drop(size)
        return taken

    def drop(self, size: int) -> None:
        """Drop the first `size` bytes."""
        del self[:size]
        self._scanned = 0
