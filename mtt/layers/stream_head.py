"""Reads what a stream begins with: a destination, a head, an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from mtt.errors import Cause, NetworkError
from mtt.layers.base import Data, StreamProtocol, StreamTransport
from mtt.layers.parked import park
from mtt.wire.errors import WireError

Head = TypeVar("Head")


class StreamHead(StreamProtocol, Generic[Head]):
    """The protocol of a stream until its head is complete.

    Args:
        parse: returns the head that the bytes begin with, and the offset after it; None while it is
            incomplete. Raises WireError.
        ready: called with the stream, parked with the data after the head, and the head.
        failed: called with the stream and the reason if no head comes: a WireError if it is
            malformed, else a NetworkError. The stream closes.
        what: the head's name in errors.
        seconds: time limit.
    """

    __slots__ = (
        "_buffer", "_failed", "_parse", "_ready", "_seconds", "_timer", "_transport", "_what",
    )  # fmt: skip

    _transport: StreamTransport

    def __init__(
        self,
        parse: Callable[[bytes], tuple[Head, int] | None],
        ready: Callable[[StreamTransport, Head], None],
        failed: Callable[[StreamTransport, Exception], None],
        *,
        what: str,
        seconds: float,
    ) -> None:
        self._parse = parse
        self._ready = ready
        self._failed: Callable[[StreamTransport, Exception], None] | None = failed
        self._what = what
        self._buffer = b""  # the incomplete head
        self._seconds = seconds
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        # Not earlier: a stream of the peer may wait before it begins.
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._expired)

    def data_received(self, data: Data) -> None:
        if self._failed is None:
            return
        self._buffer += data
        try:
            found = self._parse(self._buffer)
        except WireError as error:
            self._fail(error.with_traceback(None))
            return
        if found is not None:
            head, end = found
            ready = self._ready
            self._release()
            park(self._transport, self._buffer[end:])
            ready(self._transport, head)

    def eof_received(self) -> bool:
        self._fail(NetworkError(f"the stream ended before its {self._what}", cause=Cause.EOF))
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        failed = self._failed if self._timer is not None else None  # else it has never begun
        self._release()
        if failed is not None:
            failed(self._transport, exc or NetworkError("the stream was closed", cause=Cause.EOF))

    def _expired(self) -> None:
        text = f"no {self._what} within {self._seconds:g} s"
        self._fail(NetworkError(text, cause=Cause.TIMEOUT))

    def _fail(self, error: Exception) -> None:
        failed = self._failed
        if failed is not None:
            self._release()
            failed(self._transport, error)
            self._transport.close()

    def _release(self) -> None:
        self._failed = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
