"""The handshake of a proxy client: protocol detection and SOCKS, up to the complete request.

Theory of operation
-------------------
A buffer holds unprocessed data. Each step consumes one message, answers it, and sets the next step.
The first step detects the protocol. For HTTP, an `HttpConnection` takes over the connection. For
SOCKS, the last step is the request: it parks the connection, with all data behind the request, and
passes it to the port.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from mtt.address import peer_name
from mtt.layers.base import Data, StreamProtocol, StreamTransport
from mtt.layers.parked import park
from mtt.log import logger
from mtt.outcome import Outcome
from mtt.proxy.http import HttpConnection
from mtt.proxy.port import HANDSHAKE_TIME, Failure, ProxyPort, Route
from mtt.wire import socks
from mtt.wire.socks import SocksError


class ProxyHandshake(StreamProtocol):
    """Protocol of a client's connection until its request is complete."""

    __slots__ = (
        "_buffer", "_closed", "_deadline", "_port", "_route", "_step", "_timer", "_transport",
    )  # fmt: skip

    _transport: StreamTransport

    def __init__(self, port: ProxyPort) -> None:
        self._port = port
        self._route = port.route
        self._buffer = bytearray()
        self._closed = False
        self._deadline = 0.0
        # Consumes a message from the buffer; returns whether it was complete. Not a bound method,
        # which would be a reference cycle.
        self._step: Callable[[ProxyHandshake], bool] = ProxyHandshake._detect_protocol
        self._timer: asyncio.TimerHandle | None = None

    # The protocol of the transport.

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        loop = asyncio.get_running_loop()
        self._deadline = loop.time() + HANDSHAKE_TIME
        self._timer = loop.call_later(HANDSHAKE_TIME, self._expired)
        self._port.handshake_begun(transport)

    def data_received(self, data: Data) -> None:
        self._buffer += data
        try:
            while not self._closed and self._buffer and self._step(self):
                pass
        except SocksError as error:
            self._port.report(peer_name(self._transport), error)
            self._close(error.answer)

    def eof_received(self) -> bool:
        self.connection_lost(None)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._closed:
            begun = bool(self._buffer) or self._step is not ProxyHandshake._detect_protocol
            self._port.log_lost(peer_name(self._transport), exc, begun=begun)
            self._detach()

    # SOCKS.

    def _detect_protocol(self) -> bool:
        version = self._buffer[0]
        if version == socks.VERSION5:
            self._step = ProxyHandshake._socks5_methods
        elif version == socks.VERSION4:
            self._step = ProxyHandshake._socks4
        elif chr(version).isascii() and chr(version).isalpha():
            self._step = ProxyHandshake._http
        else:
            # No answer: the client's protocol is unknown.
            what = "TLS" if version == 0x16 else "neither SOCKS nor HTTP"
            raise SocksError(f"the client speaks {what} (first byte {version:#04x})")
        return True

    def _socks5_methods(self) -> bool:
        found = socks.parse_methods(bytes(self._buffer))
        if found is None:
            return False
        methods, end = found
        if self._port.login is not None and socks.LOGIN in methods:
            method = socks.LOGIN
        elif self._route is not None and socks.NO_LOGIN in methods:
            method = socks.NO_LOGIN
        else:
            text = "offers no login with user and password, which this port requires"
            if self._port.login is None:
                text = "offers only logins, but this port has no users"
            raise SocksError(f"the client {text}", socks.method_reply(socks.NO_METHOD))
        self._transport.write(socks.method_reply(method))
        self._next(end, ProxyHandshake._socks5_login if method else ProxyHandshake._socks5_request)
        return True

    def _socks5_login(self) -> bool:
        found = socks.parse_login(bytes(self._buffer))
        if found is None:
            return False
        user, password, end = found
        assert self._port.login is not None
        self._route = self._port.login(self._transport, user, password)
        if self._route is None:
            raise SocksError("wrong user or password", socks.login_reply(False))
        self._transport.write(socks.login_reply(True))
        self._next(end, ProxyHandshake._socks5_request)
        return True

    def _socks5_request(self) -> bool:
        found = socks.parse_request(bytes(self._buffer))
        if found is None:
            return False
        command, host, port, end = found
        route = self._route
        assert route is not None
        if command == socks.CONNECT:
            success = socks.reply5(Outcome.SUCCEEDED)
            self._connect(route, end, (host, port), success, socks.reply5)
        elif command == socks.UDP_ASSOCIATE and route.open_packets is not None:
            near = self._hand_over(end)
            self._port.tunnels.spawn(near, self._port.associate(route, near, port))
        else:
            answer = socks.refusal5(socks.COMMAND_NOT_SUPPORTED)
            raise SocksError(f"unsupported SOCKS command {command}", answer)
        return True

    def _socks4(self) -> bool:
        found = socks.parse_request4(bytes(self._buffer))
        if found is None:
            return False
        command, host, port, end = found
        route = self._route
        if route is None:
            text = "SOCKS4 has no passwords, but this port requires a login; use SOCKS5"
            raise SocksError(text, socks.reply4(False))
        if command != socks.CONNECT:
            raise SocksError(f"unsupported SOCKS command {command}", socks.reply4(False))
        success = socks.reply4(True)
        self._connect(route, end, (host, port), success, lambda _: socks.reply4(False))
        return True

    def _connect(
        self,
        route: Route,
        end: int,
        destination: tuple[str, int],
        success: bytes,
        failure: Failure,
    ) -> None:
        near, port = self._hand_over(end), self._port
        port.tunnels.spawn(near, port.connect(route, near, destination, success, failure))

    # HTTP.

    def _http(self) -> bool:
        transport, received = self._transport, bytes(self._buffer)
        self._detach()
        HttpConnection(self._port, transport, self._deadline).start(received)
        return True

    # End.

    def _next(self, end: int, step: Callable[[ProxyHandshake], bool]) -> None:
        del self._buffer[:end]
        self._step = step

    def _hand_over(self, end: int) -> StreamTransport:
        """Park the connection without the request, which is the buffer up to `end`."""
        transport, rest = self._transport, bytes(self._buffer[end:])
        self._detach()
        park(transport, rest)
        return transport

    def _expired(self) -> None:
        name = peer_name(self._transport)
        logger.debug("%s: no complete request within %g s", name, HANDSHAKE_TIME)
        self._close()

    def _close(self, answer: bytes = b"") -> None:
        """Send `answer` and close the connection."""
        self._detach()
        if answer:
            self._transport.write(answer)
        self._transport.close()

    def _detach(self) -> None:
        self._closed = True
        self._buffer.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._port.handshake_over(self._transport)
