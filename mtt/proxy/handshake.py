"""What a client of the proxy port says until it has said what it wants.

Theory of operation
-------------------
The buffer holds what came and was not used. Each step takes a message from its front, answers it,
and says what the next step is; the first one tells the protocols apart. A connection with HTTP
goes to an `HttpConnection`. With SOCKS the request is the last step: the connection then goes to a
`Parked`, with all that came behind the request, and to the owner.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from mtt.address import peer_name
from mtt.errors import Cause, NetworkError, NothingSaidError, describe
from mtt.layers.base import Data, StreamProtocol, StreamTransport
from mtt.layers.parked import park
from mtt.outcome import Outcome
from mtt.proxy import http
from mtt.proxy.http import HttpConnection
from mtt.wire import socks
from mtt.wire.socks import SocksError


class Owner(http.Owner, Protocol):
    """What a handshake needs of its proxy port."""

    has_udp: bool

    def begun(self, transport: StreamTransport) -> None: ...
    def over(self, transport: StreamTransport) -> None: ...
    def associate(self, near: StreamTransport, port: int) -> None: ...


class ProxyHandshake(StreamProtocol):
    """The protocol of a client until its request is complete."""

    __slots__ = ("_buffer", "_closed", "_deadline", "_owner", "_step", "_timer", "_transport")

    _transport: StreamTransport

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._buffer = bytearray()
        self._closed = False
        self._deadline = 0.0
        # Takes a message from the buffer; whether it was there. No bound method: that would keep
        # the connection alive until the garbage collector comes.
        self._step: Callable[[ProxyHandshake], bool] = ProxyHandshake._first
        self._timer: asyncio.TimerHandle | None = None

    # The protocol of the transport.

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        loop = asyncio.get_running_loop()
        self._deadline = loop.time() + self._owner.handshake_time
        self._timer = loop.call_later(self._owner.handshake_time, self._expired)
        self._owner.begun(transport)

    def data_received(self, data: Data) -> None:
        self._buffer += data
        try:
            while not self._closed and self._buffer and self._step(self):
                pass
        except SocksError as error:
            self._fail(error, error.answer)

    def eof_received(self) -> bool:
        self.connection_lost(None)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self._closed:
            return
        if self._buffer or self._step is not ProxyHandshake._first:
            text = f"left in the middle of its request: {describe(exc)}"
            self._tell(NetworkError(text, cause=Cause.EOF))
        else:
            self._tell(NothingSaidError("closed without a byte"))
        self._let_go()

    # SOCKS.

    def _first(self) -> bool:
        version = self._buffer[0]
        if version == socks.VERSION5:
            self._step = ProxyHandshake._socks5_methods
        elif version == socks.VERSION4:
            self._step = ProxyHandshake._socks4
        elif chr(version).isascii() and chr(version).isalpha():
            self._step = ProxyHandshake._http
        else:
            # Without an answer, as nobody knows a language to give it in.
            what = " but TLS" if version == 0x16 else ""
            raise SocksError(f"speaks neither SOCKS nor HTTP{what} (first byte {version:#04x})")
        return True

    def _socks5_methods(self) -> bool:
        found = socks.parse_methods(bytes(self._buffer))
        if found is None:
            return False
        methods, end = found
        method = socks.LOGIN if self._owner.has_login else socks.NO_LOGIN
        if method not in methods:
            text = "offers no login with user and password" if method else "offers only logins"
            raise SocksError(text, socks.method_reply(socks.NO_METHOD))
        self._transport.write(socks.method_reply(method))
        self._next(end, ProxyHandshake._socks5_login if method else ProxyHandshake._socks5_request)
        return True

    def _socks5_login(self) -> bool:
        found = socks.parse_login(bytes(self._buffer))
        if found is None:
            return False
        user, password, end = found
        if not self._owner.accepts(user, password):
            raise SocksError("wrong user or password", socks.login_reply(False))
        self._transport.write(socks.login_reply(True))
        self._next(end, ProxyHandshake._socks5_request)
        return True

    def _socks5_request(self) -> bool:
        found = socks.parse_request(bytes(self._buffer))
        if found is None:
            return False
        command, host, port, end = found
        if command == socks.CONNECT:
            near = self._hand_over(end)
            self._owner.connect(near, host, port, socks.reply5(Outcome.SUCCEEDED), socks.reply5)
        elif command == socks.UDP_ASSOCIATE and self._owner.has_udp:
            self._owner.associate(self._hand_over(end), port)
        else:
            answer = socks.refusal5(socks.COMMAND_NOT_SUPPORTED)
            raise SocksError(f"asks for SOCKS command {command}", answer)
        return True

    def _socks4(self) -> bool:
        found = socks.parse_request4(bytes(self._buffer))
        if found is None:
            return False
        command, host, port, end = found
        if self._owner.has_login:
            raise SocksError("SOCKS4 has no passwords, and one is wanted", socks.reply4(False))
        if command != socks.CONNECT:
            raise SocksError(f"asks for SOCKS command {command}", socks.reply4(False))
        near = self._hand_over(end)
        self._owner.connect(near, host, port, socks.reply4(True), lambda _: socks.reply4(False))
        return True

    # HTTP.

    def _http(self) -> bool:
        transport, received = self._transport, bytes(self._buffer)
        self._let_go()
        HttpConnection(self._owner, transport, self._deadline).start(received)
        return True

    # Ends.

    def _next(self, end: int, step: Callable[[ProxyHandshake], bool]) -> None:
        del self._buffer[:end]
        self._step = step

    def _hand_over(self, end: int) -> StreamTransport:
        """The connection for whoever serves the request, which is the buffer up to `end`."""
        transport, rest = self._transport, bytes(self._buffer[end:])
        self._let_go()
        park(transport, rest)
        return transport

    def _expired(self) -> None:
        seconds = self._owner.handshake_time
        self._fail(NetworkError(f"no complete request within {seconds:g} s", cause=Cause.TIMEOUT))

    def _fail(self, error: Exception, answer: bytes = b"") -> None:
        """Say `answer`, and close."""
        self._tell(error)
        self._let_go()
        if answer:
            self._transport.write(answer)
        self._transport.close()

    def _tell(self, error: Exception) -> None:
        self._owner.tell(peer_name(self._transport), error)

    def _let_go(self) -> None:
        """Be done with this connection: whatever happens to it now is none of our business."""
        self._closed = True
        self._buffer.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._owner.over(self._transport)
