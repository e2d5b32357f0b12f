"""The client's side of a connection to a proxy: HTTP CONNECT (RFC 9110, 9.3.6), and SOCKS 5."""

from __future__ import annotations

import asyncio
from typing import Any

from mtt.errors import Cause, MttError, NetworkError, PeerError, again, describe
from mtt.layers.base import Data, StreamTransport
from mtt.layers.parked import Parked
from mtt.wire.heads import HeadBuffer
from mtt.wire.http1 import HttpError, Response
from mtt.wire.socks_client import SocksClient


class ProxyClient(Parked):
    """Asks a proxy for a connection, and parks it, paused, after the answer.

    Bytes behind the answer are in `early`: the beginning of a refusal's body, or something that the
    proxy sent before the client.
    """

    __slots__ = ("_answered", "_failure")

    def __init__(self) -> None:
        super().__init__()
        self._answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._failure: MttError | None = None

    async def wait(self) -> None:
        """Wait for the proxy's final answer.

        Raises PeerError if the proxy does not speak the protocol or refuses, NetworkError if the
        connection failed.
        """
        await self._answered
        if self._failure is not None:
            raise again(self._failure)

    def _greeting(self) -> bytes:
        """The first bytes for the proxy."""
        raise NotImplementedError

    def _take(self, transport: StreamTransport, data: Data) -> bytes | None:
        """Take data of the answer; returns what came behind it, or None while it is incomplete.

        Raises PeerError.
        """
        raise NotImplementedError

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.write(self._greeting())

    def data_received(self, data: Data) -> None:
        transport = self.transport
        if transport is None or self._answered.done():
            super().data_received(data)
            return
        try:
            rest = self._take(transport, data)
        except PeerError as error:
            self._fail(error)
        else:
            if rest is None:
                return
            self.early = rest
            self._answered.set_result(None)
        transport.pause_reading()

    def eof_received(self) -> bool:
        self._lost(None)
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost(exc)
        super().connection_lost(exc)

    def _lost(self, exc: Exception | None) -> None:
        if isinstance(exc, MttError):  # of TLS to the proxy
            self._fail(exc)
            return
        text = "it closed the connection without an answer" if exc is None else describe(exc)
        self._fail(NetworkError(text, cause=Cause.EOF))

    def _fail(self, error: MttError) -> None:
        if not self._answered.done():
            self._failure = error.with_traceback(None)
            self._answered.set_result(None)


class ConnectClient(ProxyClient):
    """Sends a CONNECT `request` on a new connection to an HTTP proxy."""

    __slots__ = ("_buffer", "_request", "_response")

    def __init__(self, request: bytes) -> None:
        super().__init__()
        self._request = request
        self._buffer = HeadBuffer()
        self._response: Response | None = None

    async def answer(self) -> Response:
        """Wait for the head of the final answer, whatever its status. Raises as `wait`."""
        await self.wait()
        assert self._response is not None
        return self._response

    def _greeting(self) -> bytes:
        return self._request

    def _take(self, transport: StreamTransport, data: Data) -> bytes | None:
        self._buffer += data
        try:
            self._response = self._buffer.final_response()
        except HttpError as error:
            raise PeerError(f"it does not speak HTTP: {error}", cause=Cause.HTTP) from None
        return None if self._response is None else bytes(self._buffer)


class SocksConnect(ProxyClient):
    """Performs a `handshake` on a new connection to a SOCKS proxy."""

    __slots__ = ("_handshake",)

    def __init__(self, handshake: SocksClient) -> None:
        super().__init__()
        self._handshake = handshake

    def _greeting(self) -> bytes:
        return self._handshake.greeting

    def _take(self, transport: StreamTransport, data: Data) -> bytes | None:
        sent = self._handshake.feed(data)
        if sent:
            transport.write(sent)
        return self._handshake.rest
