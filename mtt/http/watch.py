"""What a visitor sends to the fallback site, watched as it passes: does a tunnel begin?

A web server answers at the first byte that cannot belong to a request, and its clock starts with
the first byte that can. So the site gets what a visitor sends as it comes. Only what may still
become the request of a tunnel is held back, except for its first word, which starts the site's
clock and tells the site nothing about the path.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from mtt.wire.heads import HeadBuffer
from mtt.wire.http1 import MAX_HEAD, HttpError, Request, parse_request
from mtt.wire.upgrade import METHOD, RequestBeginning


class Watch(Protocol):
    """Looks at what a visitor sends."""

    @property
    def unfinished(self) -> bytes:
        """What has come of a request, or of a preamble, that is not complete."""

    def take(self, data: bytes, eof: bool) -> tuple[bytes, bytes | None]:
        """Take what came, and perhaps the end: what the site gets, and what begins a tunnel."""

    @property
    def is_committed(self) -> bool:
        """Whether the site has been given more than tells it that a request has begun."""


class RequestWatch:
    """Tells the requests of one connection apart as long as their bodies have a length.

    Behind a chunked body or an upgrade all is passed on unseen.

    Args:
        is_tunnel: whether a request, with or without bytes right behind it, begins a tunnel. None
            where none does.
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
        self._passed = 0  # bytes of it that the site has got
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
        """What the site gets of an unfinished head."""
        head = self._head
        if len(head) > MAX_HEAD or not (self._is_held and self._beginning.goes_on(head)):
            self._is_held = False
        limit = min(len(head), len(METHOD)) if self._is_held else len(head)
        piece = bytes(head[self._passed : limit])
        self._passed = limit
        if not self._is_held:
            self.is_committed = True
        if len(head) > MAX_HEAD:  # no HTTP, or nothing that we understand
            self._unseen = True
            self._begin()
        return piece

    def _judge(self, end: int, eof: bool) -> bytes | None:
        """The beginning of a tunnel, if the head that ends there is one."""
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


class PreambleWatch:
    """Waits for the first bytes of a connection, which tell users of AnyTLS from visitors.

    Args:
        is_user: whether a connection that begins with this is a user's.
    """

    __slots__ = ("_is_user", "_requests")

    def __init__(self, is_user: Callable[[bytes], bool]) -> None:
        self._is_user = is_user
        self._requests: RequestWatch | None = None

    @property
    def unfinished(self) -> bytes:
        return self._requests.unfinished if self._requests is not None else b""

    @property
    def is_committed(self) -> bool:
        return self._requests is not None and self._requests.is_committed

    def take(self, data: bytes, eof: bool) -> tuple[bytes, bytes | None]:
        if self._requests is None:
            if data and self._is_user(data):
                return b"", data
            self._requests = RequestWatch(None)
        return self._requests.take(data, eof)
