"""The handshake of a proxy client: protocol detection and SOCKS, up to the complete request.

Theory of operation
-------------------
A buffer holds unprocessed data. Its first byte shows the protocol. For HTTP, an `HttpConnection`
takes over the connection. For SOCKS, each step parses one message, answers it, and sets the next
step. The last one, the request, parks the connection, with all data behind the request, and passes
it to the port.
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

# Parses a SOCKS message into its fields and its length, None if it is incomplete; and handles it.
# Not a bound method, which would be a reference cycle.
Step = tuple[Callable[[bytes], tuple[Any, ...] | None], Callable[..., None]]


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
        self._step: Step | None = None  # None before the protocol is known
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
            while not self._closed and self._buffer and self._advance():
                pass
        except SocksError as error:
            self._port.report(peer_name(self._transport), error)
            self._close(error.answer)

    def eof_received(self) -> bool:
        self.connection_lost(None)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._closed:
            begun = self._step is not None
            self._port.log_lost(peer_name(self._transport), exc, begun=begun)
            self._detach()

    # Messages.

    def _advance(self) -> bool:
        """Handle the next message. Returns whether it was complete."""
        if self._step is None:
            self._detect_protocol()
            return True
        parse, handle = self._step
        found = parse(bytes(self._buffer))
        if found is None:
            return False
        *fields, end = found
        del self._buffer[:end]
        handle(self, *fields)
        return True

    def _detect_protocol(self) -> None:
        version = self._buffer[0]
        if version == socks.VERSION5:
            self._step = socks.parse_methods, ProxyHandshake._methods5
        elif version == socks.VERSION4:
            self._step = socks.parse_request4, ProxyHandshake._request4
        elif chr(version).isascii() and chr(version).isalpha():
            transport, received = self._transport, bytes(self._buffer)
            self._detach()
            HttpConnection(self._port, transport, self._deadline).start(received)
        else:
            # No answer: the client's protocol is unknown.
            what = "TLS" if version == 0x16 else "neither SOCKS nor HTTP"
            raise SocksError(f"the client speaks {what} (first byte {version:#04x})")

    def _methods5(self, methods: bytes) -> None:
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
        if method == socks.LOGIN:
            self._step = socks.parse_login, ProxyHandshake._login5
        else:
            self._step = socks.parse_request, ProxyHandshake._request5

    def _login5(self, user: bytes, password: bytes) -> None:
        if self._port.login is not None:  # else it was given up meanwhile
            self._route = self._port.login(self._transport, user, password)
        if self._route is None:
            raise SocksError("wrong user or password", socks.login_reply(False))
        self._transport.write(socks.login_reply(True))
        self._step = socks.parse_request, ProxyHandshake._request5

    def _request5(self, command: int, host: str, port: int) -> None:
        route = self._route
        assert route is not None
        if command == socks.CONNECT:
            success = socks.reply5(Outcome.SUCCEEDED)
            self._connect(route, (host, port), success, socks.reply5)
        elif command == socks.UDP_ASSOCIATE and route.open_packets is not None:
            near = self._hand_over()
            self._port.tunnels.spawn(near, self._port.associate(route, near, port))
        else:
            answer = socks.refusal5(socks.COMMAND_NOT_SUPPORTED)
            raise SocksError(f"unsupported SOCKS command {command}", answer)

    def _request4(self, command: int, host: str, port: int) -> None:
        route = self._route
        if route is None:
            text = "SOCKS4 has no passwords, but this port requires a login; use SOCKS5"
            raise SocksError(text, socks.reply4(False))
        if command != socks.CONNECT:
            raise SocksError(f"unsupported SOCKS command {command}", socks.reply4(False))
        self._connect(route, (host, port), socks.reply4(True), lambda _: socks.reply4(False))

    def _connect(
        self, route: Route, destination: tuple[str, int], success: bytes, failure: Failure
    ) -> None:
        near, port = self._hand_over(), self._port
        port.tunnels.spawn(near, port.connect(route, near, destination, success, failure))

    # End.

    def _hand_over(self) -> StreamTransport:
        """Park the connection, with the data behind the request."""
        transport, rest = self._transport, bytes(self._buffer)
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
