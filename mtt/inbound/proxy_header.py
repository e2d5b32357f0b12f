"""Reads the PROXY protocol's header, which trusted proxies send before the user's bytes.

    TCP -> header, from trusted addresses only -> TLS, or the head without it

From then on the header's address replaces the socket's, in logs and in PROXY headers for
destinations. Connections from other addresses are passed on unread, so a header from these is
invalid TLS or HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from mtt.errors import Cause, NetworkError, NothingSaidError, PeerError
from mtt.layers.base import Data, StreamProtocol, StreamTransport
from mtt.options.trusted_proxies import TrustedProxies
from mtt.wire.proxy_protocol import HeaderError, may_begin, parse

# Seconds: proxies send the header at once. The specification (2) asks for at least 3 s, for one
# retransmission.
HEADER_TIME = 10.0

_FIX = (
    "the trusted proxy sent no PROXY header; configure it to (HAProxy: send-proxy-v2, nginx: "
    "proxy_protocol on), or remove its address from -trusted-proxies"
)


class ProxyHeaderReader(StreamProtocol):
    """The first protocol of a connection, before that of `accept`.

    Args:
        proxies: the trusted proxies; headers of others are not read.
        accept: makes the next protocol.
        is_required: whether trusted proxies must send a header. Otherwise connections without one
            keep the proxy's address: the proxy may name the user in HTTP headers.
        on_wait: called with the transport when it waits for a header.
        on_failure: called with the transport and the error if there is no valid header; reports it.
        on_end: called with the transport when it no longer waits.
        keeps_own: keep the address of this machine, instead of the one that the user connected to.
    """

    __slots__ = (
        "_accept", "_buffer", "_is_required", "_keeps_own", "_on_end", "_on_failure", "_on_wait",
        "_proxies", "_timer", "_transport",
    )  # fmt: skip

    _transport: StreamTransport

    def __init__(
        self,
        proxies: TrustedProxies,
        accept: Callable[[], StreamProtocol],
        *,
        is_required: bool,
        on_wait: Callable[[StreamTransport], object],
        on_failure: Callable[[StreamTransport, Exception], object],
        on_end: Callable[[StreamTransport], object],
        keeps_own: bool = False,
    ) -> None:
        self._proxies = proxies
        self._accept = accept
        self._is_required = is_required
        self._keeps_own = keeps_own
        self._on_wait = on_wait
        self._on_failure = on_failure
        self._on_end: Callable[[StreamTransport], object] | None = on_end
        self._buffer = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        if not self._proxies.trusts(transport.get_extra_info("peername")):
            protocol = self._accept()
            transport.set_protocol(protocol)
            protocol.connection_made(transport)
            return
        self._on_wait(transport)
        self._timer = asyncio.get_running_loop().call_later(HEADER_TIME, self._expired)

    def data_received(self, data: Data) -> None:
        self._buffer += data
        if not may_begin(self._buffer):
            self._go_on_without()
            return
        try:
            header = parse(self._buffer)
        except HeaderError as error:
            self._fail(error)
            return
        if header is not None:
            if header.source is not None:
                own = None if self._keeps_own else header.destination
                self._transport.bottom.set_peer(header.source, own)
            self._go_on(self._buffer[header.size :])

    def eof_received(self) -> bool:
        if self._buffer:
            self._report(NetworkError("the connection ended in the PROXY header", cause=Cause.EOF))
        else:  # a health check
            self._report(NothingSaidError("the connection ended before any data"))
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self._on_end is not None:  # load balancers reset the connections of health checks
            self.eof_received()

    def _expired(self) -> None:
        self._timer = None
        if self._buffer:
            text = f"no complete PROXY header within {HEADER_TIME:g} s"
            self._fail(NetworkError(text, cause=Cause.TIMEOUT))
        else:
            self._go_on_without()

    def _go_on_without(self) -> None:
        if self._is_required:
            self._fail(PeerError(_FIX, cause=Cause.PROXY_HEADER))
        else:
            self._go_on(self._buffer)

    def _go_on(self, rest: bytes) -> None:
        """Pass the connection on, with what has arrived behind the header."""
        transport, protocol = self._transport, self._accept()
        self._stop()
        # Not park() and hand_over(), which would pause and resume the transport.
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        if rest and not transport.is_closing():
            transport.get_protocol().data_received(rest)

    def _fail(self, error: Exception) -> None:
        self._report(error)
        self._transport.abort()

    def _report(self, error: Exception) -> None:
        self._on_failure(self._transport, error)
        self._stop()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._on_end is not None:
            self._on_end(self._transport)
            self._on_end = None
