"""Finds the beginning of a tunnel in the data of a visitor to the fallback site.

A web server answers at the first byte that cannot belong to a request, and its timeout starts with
the first byte that can. So the site gets a visitor's data as they come. Only a possible request for
a tunnel is held back, except for its method, which starts the site's timeout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from mtt.wire.heads import HeadBuffer
from mtt.wire.http1 import MAX_HEAD, HttpError, Request, parse_request
from mtt.wire.upgrade import METHOD, RequestBeginning


class Inspector(Protocol):
    """Checks the data of a visitor."""

    @property
    def unfinished(self) -> bytes:
        """The incomplete request at the end of the data."""

    def take(self, data: bytes, eof: bool) -> tuple[bytes, bytes | None]:
        """Check data, and whether the end follows. Returns the site's part and a tunnel's."""

    @property
    def is_committed(self) -> bool:
        """Whether the site has got more than the method of a request."""


class RequestInspector:
    """Checks each request of a connection, up to a chunked body or an upgrade.

    `is_tunnel`: whether a request begins a tunnel, given whether bytes follow it. None: none does.
    """

    __slots__ = (
        "_beginning", "_body_left", "_head", "_is_held", "_is_tunnel", "_passed", "_unseen",
        "is_committed",
    )  # fmt: skip

    def __init__(self, is_tunnel: Callable[[Request, bool], bool] | None) -> None:
        self._is_tunnel = is_tunnel
        self._body_left = 0
        self._unseen = False
        self.is_committed = False
        self._begin()

    def _begin(self) -> None:
        """Expect a request."""
        self._head = HeadBuffer()
        self._passed = 0  # bytes of it that the site has
        self._is_held = self._is_tunnel is not None
        self._beginning = RequestBeginning()

    @property
    def unfinished(self) -> bytes:
        return bytes(self._head)

    def take(self, data: bytes, eof: bool) -> tuple[bytes, bytes | None]:
        passed = bytearray()
        while data and not self._unseen:
            size = min(self._body_left, len(data))
            self._body_left -= size
            passed += data[:size]
            self._head += data[size:]
            data = b""
            end = self._head.find_end()
            if end < 0 or end > MAX_HEAD:
                passed += self._pass_beginning()
                break
            tunnel = self._judge(end, eof)
            if tunnel is not None:
                return bytes(passed), tunnel
            passed += self._head[self._passed : end]
            data = bytes(self._head[end:])
            self.is_committed = True
            self._begin()
        if eof:
            passed += self._head[self._passed :]
            self._begin()
        return bytes(passed + data) if passed else data, None

    def _pass_beginning(self) -> bytes:
        """Returns the site's part of an unfinished head."""
        head = self._head
        if len(head) > MAX_HEAD or not (self._is_held and self._beginning.goes_on(head)):
            self._is_held = False
        limit = min(len(head), len(METHOD)) if self._is_held else len(head)
        piece = bytes(head[self._passed : limit])
        self._passed = limit
        if not self._is_held:
            self.is_committed = True
        if len(head) > MAX_HEAD:
            self._unseen = True
            self._begin()
        return piece

    def _judge(self, end: int, eof: bool) -> bytes | None:
        """Returns the beginning of a tunnel, if the head up to `end` is one."""
        head = bytes(self._head[:end])
        try:
            request = parse_request(head)
        except HttpError:
            self._unseen = True
            return None
        is_tunnel = self._is_tunnel if self._is_held and not eof else None
        if is_tunnel is not None and is_tunnel(request, len(self._head) > end):
            return bytes(self._head)
        self._body_left = request.content_length
        self._unseen = (
            request.chunked or request.method == "CONNECT" or request.first("upgrade") is not None
        )
        return None


class PreambleInspector(RequestInspector):
    """Checks whether a connection is an AnyTLS user's, by its first bytes, or a visitor's."""

    __slots__ = ("_is_user",)

    def __init__(self, is_user: Callable[[bytes], bool]) -> None:
        super().__init__(None)
        self._is_user: Callable[[bytes], bool] | None = is_user

    def take(self, data: bytes, eof: bool) -> tuple[bytes, bytes | None]:
        is_user, self._is_user = self._is_user, None  # only the first bytes count
        if is_user is not None and data and is_user(data):
            return b"", data
        return super().take(data, eof)
