"""Readers of the head of an AnyTLS connection and of a stream, on a server.

Each is the protocol of its transport until it has read its part. Then it hands the transport over,
with the data after it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from mtt.errors import Cause, NetworkError, NothingSaidError, PeerError
from mtt.layers.base import Data, StreamProtocol, StreamTransport
from mtt.layers.stream_head import StreamHead
from mtt.wire.addresses import decode as decode_address
from mtt.wire.anytls import PreambleReader

# Seconds from the end of the TLS handshake until the preamble is complete: as for an HTTP request.
PREAMBLE_TIME = 10.0

# Seconds from the start of a stream until its destination, which clients send at once.
DESTINATION_TIME = 10.0

User = TypeVar("User")


class ConnectionHead(StreamProtocol, Generic[User]):
    """Reads the preamble, which identifies the user.

    Args:
        find: returns the user with a password hash.
        known: gets the transport, the user and the bytes after the preamble.
        stranger: gets the transport of any other client as soon as that is certain, the data
            received, whether the connection has ended, and the reason for the log.
        failed: gets the transport and the reason if the connection is lost before that.
        silence_time: seconds until a client that sends nothing is a stranger (default
            PREAMBLE_TIME).
    """

    __slots__ = (
        "_deadline", "_failed", "_find", "_known", "_reader", "_silence_time", "_stranger",
        "_transport", "_user",
    )  # fmt: skip

    _transport: StreamTransport

    def __init__(
        self,
        find: Callable[[bytes], User | None],
        *,
        known: Callable[[StreamTransport, User, bytes], None],
        stranger: Callable[[StreamTransport, bytes, bool, Exception], None],
        failed: Callable[[StreamTransport, Exception], None],
        silence_time: float | None = None,
    ) -> None:
        self._find = find
        self._known = known
        self._stranger = stranger
        self._failed: Callable[[StreamTransport, Exception], None] | None = failed
        self._reader: PreambleReader | None = PreambleReader()
        self._user: User | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._silence_time = PREAMBLE_TIME if silence_time is None else silence_time

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._set_deadline(self._silence_time)

    def data_received(self, data: Data) -> None:
        reader = self._reader
        if reader is None:
            return
        reader.feed(data)
        is_first = self._user is None
        if is_first:
            # All clients write the preamble in one TLS record, and a record arrives whole. So less
            # than a hash is no preamble, and gets its reply as early as from any web server.
            self._user = self._find(reader.hash) if reader.hash is not None else None
            if self._user is None:
                self._reject(Cause.PASSWORD)
                return
        rest = reader.rest
        if rest is not None:
            self._release()
            assert self._user is not None
            self._known(self._transport, self._user, rest)
        elif is_first:
            self._set_deadline(PREAMBLE_TIME)

    def eof_received(self) -> bool:
        if self._reader is not None:
            self._reject(Cause.EOF)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        failed = self._failed
        if failed is not None:
            error = self._error(Cause.EOF)
            self._release()
            failed(self._transport, error)

    def _reject(self, cause: Cause) -> None:
        """Hand over the transport of a client that is not a user."""
        reader, error = self._reader, self._error(cause)
        assert reader is not None
        self._release()
        self._stranger(self._transport, reader.received, cause is Cause.EOF, error)

    def _error(self, cause: Cause) -> Exception:
        if cause is Cause.PASSWORD:
            return PeerError("authentication failed (wrong password, or a scanner)", cause=cause)
        if self._reader is None or not self._reader.received:
            return NothingSaidError("no password received")
        when = f"within {PREAMBLE_TIME:g} s" if cause is Cause.TIMEOUT else "before the end"
        return NetworkError(f"no complete password {when}", cause=cause)

    def _set_deadline(self, seconds: float) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(seconds, self._reject, Cause.TIMEOUT)

    def _release(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._reader = self._failed = None


def destination_reader(
    ready: Callable[[StreamTransport, tuple[str, int]], None],
    failed: Callable[[StreamTransport, Exception], None],
) -> StreamHead[tuple[str, int]]:
    """The protocol of a new stream; calls `ready` with its destination, see `StreamHead`."""
    return StreamHead(
        _parse_destination, ready, failed, what="destination", seconds=DESTINATION_TIME
    )


def _parse_destination(data: bytes) -> tuple[tuple[str, int], int] | None:
    found = decode_address(data)
    return found and (found[:2], found[2])
