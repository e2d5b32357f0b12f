"""Visits to the fallback site, a real web site that serves all connections without a tunnel.

Bytes pass unchanged and as early as possible, so the site decides what is answered, when, and how
long a visitor may take. A visit begins before a request is complete (see `SITE_TIME`), and a proxy
or CDN may send the requests of many clients on one connection. So a tunnel may begin on a
connection after a visit: an `Inspector` looks for its request.

The site's end closes both directions of a visit, as a web server does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from mtt.http.inspector import Inspector
from mtt.layers.base import Data, StreamProtocol, StreamTransport
from mtt.layers.layer import Layer
from mtt.layers.parked import Parked, park

# Seconds of silence after the handshake until the site gets a connection, so that the site's own
# timeout applies. Clients send a tunnel's request with the end of the handshake, so hardly any of
# them costs the site a connection.
SITE_TIME = 0.2


class Visit(Layer):
    """The transport of a visitor, for a relay to the site.

    Args:
        upper: parks the transport for the relay; gets `eof_received` when a tunnel begins.
        on_tunnel: takes over the connection, parked with the beginning of a tunnel. None if
            `inspector` finds no tunnels.
        on_refused: takes it over if the site is unreachable before the visitor has made a request.
            None resets the connection.
        on_settled: called once with the transport below, when the site has a request, a tunnel
            begins, or the connection is over.
    """

    borrows = True
    name = "visit"

    __slots__ = (
        "_buffer", "_closed", "_eof", "_eof_told", "_inspector", "_on_refused", "_on_settled",
        "_on_tunnel", "_over", "_unanswered",
    )  # fmt: skip

    def __init__(
        self,
        upper: StreamProtocol,
        inspector: Inspector,
        on_tunnel: Callable[[StreamTransport], None] | None = None,
        on_refused: Callable[[StreamTransport], None] | None = None,
        *,
        on_settled: Callable[[StreamTransport], object],
    ) -> None:
        super().__init__(upper)
        self._inspector = inspector
        self._on_tunnel = on_tunnel
        self._on_refused = on_refused
        self._on_settled: Callable[[StreamTransport], object] | None = on_settled
        self._buffer = b""  # received while paused
        self._unanswered = False  # a request has begun, without an answer of the site since
        self._eof = False
        self._eof_told = False
        self._over = False  # the connection has another protocol
        self._closed = False

    def start(self, transport: StreamTransport) -> None:
        # Before the data: `_pass_on` treats them differently if the end follows.
        held = transport.get_protocol()
        self._eof = isinstance(held, Parked) and held.eof
        super().start(transport)

    # The protocol of the layer below.

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.upper.connection_made(self)

    def data_received(self, data: Data) -> None:
        if self._paused or self._buffer:
            self._buffer += data
        else:
            self._pass_on(bytes(data))

    def eof_received(self) -> bool:
        self._eof = True
        if not (self._paused or self._buffer or self._eof_told):
            self._pass_on(b"")
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        if self._closed:
            self._end()
        self._release()
        self.report_lost(exc)

    def _pass_on(self, data: bytes) -> None:
        passed, tunnel = self._inspector.take(data, self._eof)
        if passed:
            self._unanswered = bool(self._inspector.unfinished)
            self.upper.data_received(passed)
        if tunnel is not None:
            self._leave(self._on_tunnel, tunnel)
            return
        if self._inspector.is_committed:
            self._settle()
        if self._eof and not self._over:
            self._end()

    def _leave(self, to: Callable[[StreamTransport], None] | None, received: bytes) -> None:
        """End the visit, and pass the connection on with `received`."""
        assert to is not None
        self._over = True
        self._release()
        self._end()
        park(self.lower, received)
        to(self.lower)

    def _settle(self) -> None:
        on_settled, self._on_settled = self._on_settled, None
        if on_settled is not None:
            on_settled(self.lower)

    def _release(self) -> None:
        self._settle()
        self._on_tunnel = self._on_refused = None  # they may be part of a reference cycle

    # The transport of the relay.

    def is_closing(self) -> bool:
        return self._over or self.lower.is_closing()

    @property
    def _has_more(self) -> bool:
        return bool(self._buffer) or (self._eof and not self._eof_told)

    def _deliver(self) -> None:
        if self._has_more and not (self._over or self._closed):
            data, self._buffer = self._buffer, b""
            self._pass_on(data)

    def _pause_below(self) -> None:
        if not self._over:
            self.lower.pause_reading()

    def _resume_below(self) -> None:
        if not self._over:
            self.lower.resume_reading()

    def write(self, data: Data | bytearray) -> None:
        if not self._over:
            self._unanswered = False
            self.lower.write(data)

    def half_closes(self) -> bool | None:
        return not self._over

    def write_eof(self) -> None:
        if not (self._closed or self.is_closing()):
            self.close()
            # A visitor that has seen the end is not read any more.
            asyncio.get_running_loop().call_soon(self._end)

    def _end(self) -> None:
        """Tell the relay, once, that the visitor has ended."""
        if not self._eof_told:
            self._eof_told = True
            if not self.upper.eof_received():
                self.close()

    def close(self) -> None:
        if self._over:
            asyncio.get_running_loop().call_soon(self.report_lost, None)
        elif not self._closed:
            self._closed = True
            # nginx sends no close_notify to a visitor that has ended first, or was too slow with a
            # request.
            if self._eof or self._unanswered:
                self.lower.close_silently()
            else:
                self.lower.close()

    def cut(self) -> None:
        if self._over or self._is_refused():
            self.abort()
        else:
            self.lower.cut()

    def abort(self) -> None:
        if self._over:
            asyncio.get_running_loop().call_soon(self.report_lost, None)
        elif self._is_refused():
            self._leave(self._on_refused, self._inspector.unfinished + self._buffer)
            self.abort()
        else:
            self.lower.abort()

    def _is_refused(self) -> bool:
        """Whether the site was not reached, and the connection may still become a tunnel."""
        return (
            self._on_refused is not None
            and isinstance(self.upper, Parked)
            and not (self._eof or self._inspector.is_committed or self.lower.is_closing())
        )
