"""Visitors of the web site that the server pretends to be, and in fact is.

With a fallback everything that is no tunnel is passed to a real web site, bytes unchanged. A proxy
or CDN in front may use one connection for the requests of many people, so a request for a tunnel
may come on a connection that began with a visit: requests are watched as they pass.

To a visitor the site's end is the end of both directions, at once: a web server closes. Whatever
the visitor might still send is of no use to the site either.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mtt.layers import linger
from mtt.layers.base import Data, Layer, Upper
from mtt.wire.http1 import MAX_HEAD, HttpError, Request, find_head_end, parse_request


class Visitor(Layer):
    """The transport of a visitor, for a relay to the site. It ends as that of a web server.

    Args:
        upper: the protocol of the relay.
    """

    borrows = True

    __slots__ = ("_closed", "_eof")

    def __init__(self, upper: Upper) -> None:
        super().__init__(upper)
        self._eof = False
        self._closed = False

    def start(self, transport: asyncio.Transport, received: bytes, eof: bool) -> None:
        """Take over `transport`, of which `received` has come already, and perhaps its end."""
        transport.set_protocol(self)
        self.connection_made(transport)
        self.upper.connection_made(self)
        if received:
            self.data_received(received)
        if eof:
            self.eof_received()

    # The protocol of the layer below.

    def data_received(self, data: Data) -> None:
        upper = self.upper
        upper.data_received(data if upper.borrows else bytes(data))

    def eof_received(self) -> bool:
        self._eof = True
        if not self.upper.eof_received():
            self.close()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        if self._closed:
            self._end()
        self._tell_lost(exc)

    # The transport of the relay.

    def write(self, data: Data | bytearray) -> None:
        self.lower.write(data)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        if not (self._closed or self.is_closing()):
            self.close()
            asyncio.get_running_loop().call_soon(self._end)

    def _end(self) -> None:
        """Nothing more is read from a visitor who has been told of the end."""
        self.upper.eof_received()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            linger.close(self.lower, self.connection_lost, eof_seen=self._eof)

    def abort(self) -> None:
        linger.reset(self.lower)


class Visit(Visitor):
    """The same on a server for tunnels.

    When a request begins a tunnel, the visit ends (`upper` sees the end of data) and the connection
    goes on elsewhere. Requests can be told apart as long as their bodies have a length; behind a
    chunked body or an upgrade all is passed on unseen.

    Args:
        upper: the protocol of the relay.
        is_tunnel: whether a request, with or without bytes right behind it, begins a tunnel.
        on_tunnel: gets the connection and what was received of it from that request on.
    """

    __slots__ = (
        "_body_left", "_buffer", "_is_tunnel", "_on_tunnel", "_over", "_paused",
        "_scheduled", "_unseen",
    )  # fmt: skip

    def __init__(
        self,
        upper: Upper,
        is_tunnel: Callable[[Request, bool], bool],
        on_tunnel: Callable[[asyncio.Transport, bytes], None],
    ) -> None:
        super().__init__(upper)
        self._is_tunnel = is_tunnel
        self._on_tunnel = on_tunnel
        self._buffer = bytearray()  # an unfinished head, and what came while paused
        self._body_left = 0
        self._unseen = False
        self._paused = False
        self._scheduled = False
        self._over = False  # the connection is not ours any more

    def start(self, transport: asyncio.Transport, received: bytes, eof: bool) -> None:
        self._buffer += received
        self._eof = eof
        # Given to us without a complete head: it is no HTTP, or never gets complete.
        self._unseen = find_head_end(self._buffer) < 0
        transport.set_protocol(self)
        self.connection_made(transport)
        self.upper.connection_made(self)
        self._resume()

    # The protocol of the layer below.

    def data_received(self, data: Data) -> None:
        self._buffer += data
        if not self._paused:
            self._pass_on()

    def eof_received(self) -> bool:
        self._eof = True
        if not self._paused:
            self._pass_on()
        return True

    def _pass_on(self) -> None:
        passed = bytearray()
        tunnel = False
        while self._buffer and not tunnel:
            size = self._next_piece()
            if size < 0:
                tunnel = True
            elif size == 0:
                break
            else:
                passed += self._buffer[:size]
                del self._buffer[:size]
        if self._eof and not tunnel:
            passed += self._buffer
            self._buffer.clear()
        if passed:
            self.upper.data_received(bytes(passed))
        if tunnel:
            self._over = True
            self.upper.eof_received()
            self._on_tunnel(self.lower, bytes(self._buffer))
        elif self._eof and not self._over and not self.upper.eof_received():
            self.close()

    def _next_piece(self) -> int:
        """How much of the buffer belongs to the site: 0 waits for more, -1 begins a tunnel."""
        if self._unseen:
            return len(self._buffer)
        if self._body_left:
            size = min(self._body_left, len(self._buffer))
            self._body_left -= size
            return size
        end = find_head_end(self._buffer)
        if end < 0:
            self._unseen = len(self._buffer) > MAX_HEAD
            return len(self._buffer) if self._unseen else 0
        try:
            request = parse_request(bytes(self._buffer[:end]))
        except HttpError:
            self._unseen = True
            return len(self._buffer)
        if not self._eof and self._is_tunnel(request, len(self._buffer) > end):
            return -1
        self._body_left = request.content_length
        self._unseen = (
            request.chunked or request.method == "CONNECT" or request.first("upgrade") is not None
        )
        return end

    # The transport of the relay.

    def is_closing(self) -> bool:
        return self._over or self.lower.is_closing()

    def is_reading(self) -> bool:
        return not self._paused

    def pause_reading(self) -> None:
        self._paused = True
        if not self._over:
            self.lower.pause_reading()

    def resume_reading(self) -> None:
        if self._paused:
            self._paused = False
            if not self._scheduled:
                self._scheduled = True
                asyncio.get_running_loop().call_soon(self._resume)

    def _resume(self) -> None:
        self._scheduled = False
        if not (self._paused or self._over or self._closed):
            if self._buffer or self._eof:
                self._pass_on()
            if not (self._paused or self._over):
                self.lower.resume_reading()

    def write(self, data: Data | bytearray) -> None:
        if not self._over:
            super().write(data)

    def can_write_eof(self) -> bool:
        return not self._over

    def close(self) -> None:
        if self._over:
            asyncio.get_running_loop().call_soon(self._tell_lost, None)
        else:
            super().close()

    def abort(self) -> None:
        if self._over:
            asyncio.get_running_loop().call_soon(self._tell_lost, None)
        else:
            super().abort()
