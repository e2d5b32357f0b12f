"""What comes first on a connection and on a stream of AnyTLS, read on a server.

Each is the protocol of its transport until it has read its part; then it hands the transport over
with whatever followed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from mtt.errors import Cause, NetworkError, NothingSaidError, PeerError
from mtt.layers.base import Data, StreamProtocol, StreamTransport
from mtt.layers.parked import park
from mtt.wire.addresses import AddressError
from mtt.wire.addresses import decode as decode_address
from mtt.wire.anytls import PreambleReader

# From the end of the TLS handshake until the preamble is complete: as for an HTTP request.
PREAMBLE_TIME = 10.0

# From the beginning of a stream until its destination is known, which clients send right with it.
DESTINATION_TIME = 10.0

Who = TypeVar("Who")


class ConnectionHead(StreamProtocol, Generic[Who]):
    """Reads the preamble: who is it?

    Args:
        find: the user with a password hash.
        known: gets the transport, the user and the bytes behind the preamble.
        stranger: gets the transport of anybody else as soon as that is clear, what it was that
            came, and whether that was the end; and what is wrong about it, for a log.
        failed: gets the transport and the reason if the connection is lost before that.
        silence_time: seconds until a connection that says nothing is a stranger's, if not as many
            as for a preamble.
    """

    __slots__ = (
        "_deadline", "_failed", "_find", "_known", "_reader", "_silence_time", "_stranger",
        "_transport", "_who",
    )  # fmt: skip

    _transport: StreamTransport

    def __init__(
        self,
        find: Callable[[bytes], Who | None],
        *,
        known: Callable[[StreamTransport, Who, bytes], None],
        stranger: Callable[[StreamTransport, bytes, bool, Exception], None],
        failed: Callable[[StreamTransport, Exception], None],
        silence_time: float | None = None,
    ) -> None:
        self._find = find
        self._known = known
        self._stranger = stranger
        self._failed: Callable[[StreamTransport, Exception], None] | None = failed
        self._reader: PreambleReader | None = PreambleReader()
        self._who: Who | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._silence_time = PREAMBLE_TIME if silence_time is None else silence_time

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._arm(self._silence_time)

    def data_received(self, data: Data) -> None:
        reader = self._reader
        if reader is None:
            return
        reader.feed(data)
        is_new = self._who is None
        if is_new:
            # All clients write the preamble in one record of TLS, and a record arrives whole. So
            # less than a hash is none, and gets its answer as early as from any web server.
            self._who = self._find(reader.hash) if reader.hash is not None else None
            if self._who is None:
                self._is_stranger()
                return
        rest = reader.rest
        if rest is not None:
            self._let_go()
            assert self._who is not None
            self._known(self._transport, self._who, rest)
        elif is_new:
            self._arm(PREAMBLE_TIME)

    def eof_received(self) -> bool:
        if self._reader is not None:
            self._hand_over(Cause.EOF)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        failed = self._failed
        if failed is not None:
            error = self._verdict(Cause.EOF)
            self._let_go()
            failed(self._transport, error)

    def _is_stranger(self) -> None:
        self._hand_over(Cause.PASSWORD)

    def _give_up(self) -> None:
        self._hand_over(Cause.TIMEOUT)

    def _hand_over(self, cause: Cause) -> None:
        """Be done with a stranger, whom `cause` has brought to light."""
        reader, error = self._reader, self._verdict(cause)
        assert reader is not None
        self._let_go()
        self._stranger(self._transport, reader.received, cause is Cause.EOF, error)

    def _verdict(self, cause: Cause) -> Exception:
        """What is wrong with a stranger."""
        if cause is Cause.PASSWORD:
            return PeerError("it did not show the password of a user", cause=cause)
        if self._reader is None or not self._reader.received:
            return NothingSaidError("it sent no password")
        when = f"within {PREAMBLE_TIME:g} s" if cause is Cause.TIMEOUT else "before its end"
        return NetworkError(f"it did not show a password {when}", cause=cause)

    def _arm(self, seconds: float) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = asyncio.get_running_loop().call_later(seconds, self._give_up)

    def _let_go(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._reader = self._failed = None


class StreamHead(StreamProtocol):
    """Reads the destination of a stream.

    Args:
        ready: gets the stream, held with what came behind the destination, and host and port.
        failed: gets the stream and the reason when there is none; the stream ends.
    """

    __slots__ = ("_buffer", "_failed", "_ready", "_timer", "_transport")

    _transport: StreamTransport

    def __init__(
        self,
        ready: Callable[[StreamTransport, str, int], None],
        failed: Callable[[StreamTransport, str], None],
    ) -> None:
        self._ready = ready
        self._failed: Callable[[StreamTransport, str], None] | None = failed
        self._buffer = b""  # less than an address
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._timer = asyncio.get_running_loop().call_later(DESTINATION_TIME, self._expired)

    def data_received(self, data: Data) -> None:
        if self._failed is None:
            return
        self._buffer += data
        try:
            found = decode_address(self._buffer)
        except AddressError as error:
            self._fail(str(error))
            return
        if found is not None:
            host, port, end = found
            self._let_go()
            park(self._transport, self._buffer[end:])
            self._ready(self._transport, host, port)

    def eof_received(self) -> bool:
        self._fail("the stream ended before its destination")
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._let_go()

    def _expired(self) -> None:
        self._fail(f"no destination within {DESTINATION_TIME:g} s")

    def _fail(self, reason: str) -> None:
        failed = self._failed
        if failed is not None:
            self._let_go()
            failed(self._transport, reason)
            self._transport.close()

    def _let_go(self) -> None:
        self._failed = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
