"""The client's side of the WebSocket opening handshake, on any transport."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from mtt.errors import Cause, MttError, NetworkError, PeerError, again, describe
from mtt.layers.base import Data, StreamProtocol, StreamTransport
from mtt.layers.holding import hand_over
from mtt.wire import upgrade
from mtt.wire.heads import HeadBuffer
from mtt.wire.http1 import HttpError, Response, parse_response

# Interim responses (1xx, RFC 9110, 15.2) before the one that counts; as many as Go skips.
MAX_INTERIM = 5


class UpgradeClient(StreamProtocol):
    """Asks for a WebSocket on a held transport, and leaves that paused behind the answer."""

    __slots__ = (
        "_answer", "_buffer", "_error", "_interim", "_key", "_request", "_transport",
    )  # fmt: skip

    def __init__(
        self, transport: StreamTransport, path: str, host: str, protocols: tuple[str, ...]
    ) -> None:
        self._transport = transport
        self._buffer = HeadBuffer()
        self._interim = 0  # how many interim responses came
        self._key = upgrade.own_key(os.urandom(12))
        self._answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._error: MttError | None = None  # why there is none
        self._request = upgrade.request(path, host, self._key, protocols)
        hand_over(transport, self)

    async def answered(self) -> bytes:
        """Wait for the server's 101; returns what came behind it.

        Raises PeerError if the server refused, NetworkError if the connection failed.
        """
        behind = await self._answer
        if self._error is not None:
            raise again(self._error)
        return behind

    def connection_made(self, transport: Any) -> None:
        transport.write(self._request)

    def data_received(self, data: Data) -> None:
        self._buffer += data
        if self._answer.done():
            return
        try:
            response = self._final()
            if response is None:
                return
            upgrade.check_response(response, self._key)
        except HttpError as error:
            self._fail(upgrade.UpgradeError(f"the server does not speak HTTP: {error}"))
        except PeerError as error:
            self._fail(error)
        else:
            self._transport.pause_reading()
            self._answer.set_result(bytes(self._buffer))

    def _final(self) -> Response | None:
        """The response that is not interim, taken from the buffer; None until it is complete.

        Raises HttpError and UpgradeError.
        """
        while (end := self._buffer.head_end()) >= 0:
            response = parse_response(self._buffer.take(end))
            if response.status == 101 or not 100 <= response.status < 200:
                return response
            self._interim += 1
            if self._interim > MAX_INTERIM:
                text = f"the server sent more than {MAX_INTERIM} interim responses (1xx)"
                raise upgrade.UpgradeError(text)
        return None

    def eof_received(self) -> bool:
        self.connection_lost(None)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer.done():
            return
        if exc is None:
            text = "the server closed the connection without an HTTP response"
            exc = NetworkError(text, cause=Cause.EOF)
        elif not isinstance(exc, MttError):  # the socket's: a reset
            exc = NetworkError(describe(exc), cause=Cause.EOF)
        self._fail(exc)

    def _fail(self, error: MttError) -> None:
        self._error = error.with_traceback(None)
        self._answer.set_result(b"")

    def pause_writing(self) -> None:
        """One small request: nothing to pause."""

    def resume_writing(self) -> None:
        """See pause_writing."""
