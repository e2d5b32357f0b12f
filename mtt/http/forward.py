"""The transport of a proxy's client while one request of its is forwarded."""

from __future__ import annotations

import asyncio
from typing import Any

from mtt.errors import PeerError, describe
from mtt.layers import linger
from mtt.layers.base import Data, Layer, Upper
from mtt.log import logger
from mtt.wire.http1 import HttpError
from mtt.wire.httpproxy import Body


class OneRequest(Layer):
    """Hands up what belongs to the body of one request, and drops what the client sends behind it.

    That is no loss: the request says that the connection ends with its answer, so the client has
    to ask again (RFC 9112, 9.3.2). Reading goes on, so that the end of the client is noticed.

    Args:
        upper: the protocol of the relay.
        body: finds the end of the body; what came with the head has been through it.
    """

    __slots__ = ("_body", "_eof", "_error", "_told")

    def __init__(self, upper: Upper, body: Body) -> None:
        super().__init__(upper)
        self._body = body
        self._eof = False
        self._error: Exception | None = None
        self._told = False

    def start(self, transport: asyncio.Transport) -> None:
        """Take over `transport`, reading paused."""
        transport.set_protocol(self)
        self.connection_made(transport)
        self.upper.connection_made(self)

    # The protocol of the layer below.

    def data_received(self, data: Data) -> None:
        data = bytes(data)
        try:
            size = self._body.take(data)
        except HttpError as error:
            # The head is on its way, so there is nothing left to answer.
            self._error = PeerError(f"the client's request: {describe(error)}")
            self.abort()
            return
        if size:
            self.upper.data_received(data[:size])
        if size < len(data) and not self._told:
            self._told = True
            logger.debug("the client sent more than the one request that it gets an answer to")

    def eof_received(self) -> bool | None:
        self._eof = True
        return self.upper.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._tell_lost(self._error or exc)

    # The transport of the relay.

    def write(self, data: Any) -> None:
        self._send(data)

    def can_write_eof(self) -> bool:
        return self.lower.can_write_eof()

    def close(self) -> None:
        linger.close(self.lower, self.connection_lost, eof_seen=self._eof)

    def abort(self) -> None:
        linger.reset(self.lower)
