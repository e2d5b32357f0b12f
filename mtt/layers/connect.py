"""The client's side of HTTP CONNECT (RFC 9110, 9.3.6), on a connection to a proxy."""

from __future__ import annotations

import asyncio
from typing import Any

from mtt.errors import Cause, MttError, NetworkError, PeerError, again, describe
from mtt.layers.base import Data
from mtt.layers.parked import Parked
from mtt.wire.heads import HeadBuffer
from mtt.wire.http1 import HttpError, Response


class ConnectClient(Parked):
    """Sends a CONNECT on a new connection, and parks it, paused, after the answer.

    Bytes behind the answer's head are in `early`: the beginning of a refusal's body, or something
    that the proxy sent before the client.
    """

    __slots__ = ("_answered", "_buffer", "_failure", "_request", "_response")

    def __init__(self, request: bytes) -> None:
        super().__init__()
        self._request = request
        self._buffer = HeadBuffer()
        self._answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._response: Response | None = None
        self._failure: MttError | None = None

    async def answer(self) -> Response:
        """Wait for the head of the proxy's final answer, whatever its status.

        Raises PeerError if the proxy does not speak HTTP, NetworkError if the connection failed.
        """
        await self._answered
        if self._failure is not None:
            raise again(self._failure)
        assert self._response is not None
        return self._response

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.write(self._request)

    def data_received(self, data: Data) -> None:
        transport = self.transport
        if transport is None or self._answered.done():
            super().data_received(data)
            return
        self._buffer += data
        try:
            self._response = self._buffer.final_response()
        except HttpError as error:
            self._fail(PeerError(f"it does not speak HTTP: {error}", cause=Cause.HTTP))
        except PeerError as error:
            self._fail(error)
        else:
            if self._response is None:
                return
            self.early = bytes(self._buffer)
            self._set_answered()
        transport.pause_reading()

    def eof_received(self) -> bool:
        self._lost(None)
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost(exc)
        super().connection_lost(exc)

    def _lost(self, exc: Exception | None) -> None:
        text = "it closed the connection without an answer" if exc is None else describe(exc)
        self._fail(NetworkError(text, cause=Cause.EOF))

    def _fail(self, error: MttError) -> None:
        if not self._answered.done():
            self._failure = error.with_traceback(None)
            self._set_answered()

    def _set_answered(self) -> None:
        self._answered.set_result(None)
