"""The client's side of the WebSocket opening handshake, on any transport."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Any

from mtt.errors import Cause, MttError, NetworkError, PeerError, again, describe
from mtt.layers.base import Data, StreamTransport
from mtt.layers.parked import Parked, hand_over
from mtt.wire import upgrade
from mtt.wire.heads import HeadBuffer
from mtt.wire.http1 import HttpError

# The advice for answers that are no HTTP.
_OTHER_MODE = "; does it run in WebSocket mode?"


class UpgradeClient(Parked):
    """Requests a WebSocket on a parked transport, and parks it, paused, after the answer.

    Args:
        transport: the parked transport.
        path, host, protocols, port, headers: see `mtt.wire.upgrade.request`.
        mux_cool: tell a server that is ours what follows, see `mtt.wire.upgrade.OwnKey`.

    Attributes:
        protocol: the subprotocol that the server chose, if any.
        status: of the server's answer; 0 without one.
        body: what came with an answer that is a refusal, perhaps not all of it.
    """

    __slots__ = (
        "_answer", "_buffer", "_key", "_refusal", "_request", "body", "protocol", "status",
    )  # fmt: skip

    def __init__(
        self,
        transport: StreamTransport,
        path: str,
        host: str,
        protocols: tuple[str, ...],
        *,
        port: int | None = None,
        headers: Mapping[str, str] | None = None,
        mux_cool: bool = False,
    ) -> None:
        super().__init__()
        self._buffer = HeadBuffer()
        self._key = upgrade.own_key(os.urandom(12), mux_cool=mux_cool)
        self._answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._refusal: MttError | None = None
        self.protocol: str | None = None
        self.status = 0
        self.body = b""
        self._request = upgrade.request(
            path, host, self._key, protocols, port=port, headers=headers or {}
        )
        hand_over(transport, self)

    async def answered(self) -> None:
        """Wait for the server's 101; the data after it is kept.

        Raises PeerError if the server refused, NetworkError if the connection failed.
        """
        await self._answer
        if self._refusal is not None:
            raise again(self._refusal)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.write(self._request)

    def data_received(self, data: Data) -> None:
        transport = self.transport
        if transport is None or self._answer.done():
            super().data_received(data)
            return
        self._buffer += data
        try:
            response = self._buffer.final_response()
            if response is None:
                return
            self.status = response.status
            if self.status != 101:
                self.body = bytes(self._buffer)
            self.protocol = upgrade.check_response(response, self._key)
        except HttpError as error:
            text = f"the server does not speak HTTP: {error}{_OTHER_MODE}"
            self._fail(upgrade.UpgradeError(text))
        except PeerError as error:
            self._fail(error)
        else:
            self.early = bytes(self._buffer)
            transport.pause_reading()
            self._answer.set_result(None)

    def eof_received(self) -> bool:
        if not self._answer.done():
            self._lost(None)
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._answer.done():
            self._lost(exc)
        super().connection_lost(exc)

    def _lost(self, exc: Exception | None) -> None:
        if exc is None:
            text = f"the server closed the connection without an HTTP response{_OTHER_MODE}"
            exc = NetworkError(text, cause=Cause.EOF)
        elif not isinstance(exc, MttError):  # a reset of the socket
            exc = NetworkError(describe(exc), cause=Cause.EOF)
        self._fail(exc)

    def _fail(self, error: MttError) -> None:
        self._refusal = error.with_traceback(None)
        self._answer.set_result(None)
