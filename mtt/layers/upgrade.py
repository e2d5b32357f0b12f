"""The client's side of the WebSocket opening handshake, on any transport."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from mtt.errors import Cause, MttError, NetworkError, PeerError, describe
from mtt.layers.base import Data, StreamProtocol
from mtt.layers.holding import hand_over
from mtt.wire import upgrade
from mtt.wire.http1 import MAX_HEAD, HttpError, find_head_end, parse_response


class UpgradeClient(StreamProtocol):
    """Asks for a WebSocket on a held transport, and leaves that paused behind the answer."""

    __slots__ = ("_answer", "_buffer", "_key", "_request", "_transport")

    def __init__(
        self, transport: asyncio.Transport, path: str, host: str, protocols: tuple[str, ...]
    ) -> None:
        self._transport = transport
        self._buffer = bytearray()
        self._key = upgrade.own_key(os.urandom(12))
        self._answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._request = upgrade.request(path, host, self._key, protocols)
        hand_over(transport, self)

    async def answered(self) -> bytes:
        """Wait for the server's 101; returns what came behind it.

        Raises PeerError if the server refused, NetworkError if the connection failed.
        """
        return await self._answer

    def connection_made(self, transport: Any) -> None:
        transport.write(self._request)

    def data_received(self, data: Data) -> None:
        scanned = len(self._buffer)
        self._buffer += data
        if self._answer.done():
            return
        end = find_head_end(self._buffer, scanned)
        try:
            if end < 0:
                if len(self._buffer) > MAX_HEAD:
                    raise upgrade.UpgradeError(
                        f"the server's HTTP response is larger than {MAX_HEAD} bytes"
                    )
                return
            upgrade.check_response(parse_response(bytes(self._buffer[:end])), self._key)
        except HttpError as error:
            refused = upgrade.UpgradeError(f"the server does not speak HTTP: {error}")
            self._answer.set_exception(refused)
        except PeerError as error:
            self._answer.set_exception(error)
        else:
            self._transport.pause_reading()
            self._answer.set_result(bytes(self._buffer[end:]))

    def eof_received(self) -> bool:
        self.connection_lost(None)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._answer.done():
            if exc is None:
                exc = NetworkError(
                    "the server closed the connection without an HTTP response", cause=Cause.EOF
                )
            elif not isinstance(exc, MttError):  # the socket's: a reset
                exc = NetworkError(describe(exc), cause=Cause.EOF)
            self._answer.set_exception(exc)

    def pause_writing(self) -> None:
        """One small request: nothing to pause."""

    def resume_writing(self) -> None:
        """See pause_writing."""
