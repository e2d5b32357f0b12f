"""UDP through an agent that is the Go program: one stream of the session for each destination.

The Go program's streams carry datagrams without addresses, each stream those of one destination.
`GoDatagrams` has the interface of a stream with UDP over TCP (`mtt.wire.uot`), which our own agents
carry. So the proxies of a gateway need not know which agent they got.

    UotChannel => GoDatagrams -> stream to 192.0.2.1:53
                             `-> stream to example.com:443

Nothing is queued but the first datagrams of a destination, until the agent has answered. What does
not fit is dropped, as UDP permits.
"""

from __future__ import annotations

import asyncio
from typing import Any

from mtt.errors import DestinationError, NetworkError, PeerError, describe
from mtt.layers.anyproxy import GoSession
from mtt.layers.anyproxy_stream import GoStream
from mtt.layers.base import Data, StreamProtocol, StreamTransport
from mtt.log import logger
from mtt.wire import uot
from mtt.wire.agent import UDP, Head

# Destinations of one user at a time: each is a stream here and a socket of the agent. For another
# one the stream that was not used for the longest time ends.
MAX_DESTINATIONS = 256
# Seconds without a datagram after which a destination's stream ends. RFC 4787 (REQ-5) requires at
# least 2 minutes of NATs.
IDLE_TIME = 120.0
SWEEP_INTERVAL = 15.0
# Seconds for which datagrams to a destination are dropped that the agent could not reach.
RETRY_TIME = 5.0
# Datagrams of a destination that wait for the agent's answer.
MAX_WAITING = 16


class _Destination(StreamProtocol):
    """The protocol of a destination's stream."""

    __slots__ = ("address", "failed_at", "is_ready", "owner", "stream", "used_at", "waiting")

    borrows = True

    def __init__(self, owner: GoDatagrams, address: tuple[str, int]) -> None:
        self.owner: GoDatagrams | None = owner  # None at its end
        self.address = address
        self.stream: GoStream | None = None  # None after its end
        self.is_ready = False  # the agent has answered
        self.waiting: list[bytes] = []
        self.used_at = 0.0
        self.failed_at: float | None = None

    def connection_made(self, transport: Any) -> None:
        self.is_ready = True
        waiting, self.waiting = self.waiting, []
        for payload in waiting:
            transport.write(payload)

    def data_received(self, data: Data) -> None:
        if self.owner is not None:
            self.owner.datagram_received(self, data)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        owner, self.owner, self.stream = self.owner, None, None
        self.waiting.clear()
        if owner is not None:
            owner.stream_ended(self, exc)


class GoDatagrams(StreamTransport):
    """A transport whose data are datagrams with addresses, as in UDP over TCP.

    The source of an answer is the destination as it was written, also if that is a name: only the
    agent knows its address.
    """

    __slots__ = (
        "_decoder", "_destinations", "_is_over", "_loop", "_paused", "_session", "_timer",
    )  # fmt: skip

    borrows = True
    name = "AnyProxy datagrams"

    def __init__(self, session: GoSession) -> None:
        super().__init__()
        self._session = session
        self._decoder = uot.Decoder()
        # The one that has not been used for the longest time comes first.
        self._destinations: dict[tuple[str, int], _Destination] = {}
        self._paused = False
        self._is_over = False
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(SWEEP_INTERVAL, self._sweep)

    # Sending.

    def write(self, data: Data | bytearray) -> None:
        if self._is_over:
            return
        try:
            datagrams = self._decoder.feed(bytes(data))
        except uot.UotError as error:
            self._end(PeerError(f"UDP over TCP: {error}"))
            return
        for host, port, payload in datagrams:
            self._send(host, port, payload)

    def _send(self, host: str, port: int, payload: Data) -> None:
        address = host, port
        destination = self._destinations.pop(address, None)
        now = self._loop.time()
        if destination is None or _may_retry(destination, now):
            if self._is_over:
                return
            destination = self._open(address)
            if destination is None:
                return
        self._destinations[address] = destination
        destination.used_at = now
        if destination.stream is None:
            return  # the agent could not reach it
        if destination.is_ready:
            destination.stream.write(payload)
        elif len(destination.waiting) < MAX_WAITING:
            destination.waiting.append(bytes(payload))

    def _open(self, address: tuple[str, int]) -> _Destination | None:
        session = self._session
        while self._destinations and (
            len(self._destinations) >= MAX_DESTINATIONS or not session.has_room
        ):
            self._close_stream(self._destinations.pop(next(iter(self._destinations))))
        if not (session.has_room or session.lost):
            logger.debug("%r: a datagram was dropped: the agent has too many streams", self)
            return None
        destination = _Destination(self, address)
        try:
            destination.stream = session.open_stream(destination, Head(UDP, *address))
        except NetworkError as error:
            self._end(error)
            return None
        return destination

    # Called by destinations.

    def datagram_received(self, destination: _Destination, payload: Data) -> None:
        destination.used_at = self._loop.time()
        if self._paused:
            return
        try:
            datagram = uot.encode_datagram(payload, *destination.address)
        except ValueError as error:
            logger.debug("%r: a datagram was dropped: %s", self, error)
        else:
            self.upper.data_received(datagram)

    def stream_ended(self, destination: _Destination, error: Exception | None) -> None:
        if self._session.lost:
            self._end(error)
        elif self._destinations.get(destination.address) is destination:
            if isinstance(error, DestinationError):
                logger.debug("%r: %s: %s", self, destination.address, describe(error))
                destination.failed_at = self._loop.time()
            else:
                del self._destinations[destination.address]

    def _close_stream(self, destination: _Destination) -> None:
        destination.owner = None
        if destination.stream is not None:
            destination.stream.close()

    def _sweep(self) -> None:
        """End the streams of destinations that are not used; notice that the session is over."""
        if self._session.lost:
            self._end(NetworkError("the agent's session is over"))
            return
        oldest = self._loop.time() - IDLE_TIME
        for address, destination in list(self._destinations.items()):
            if destination.used_at <= oldest:
                self._close_stream(self._destinations.pop(address))
        self._timer = self._loop.call_later(SWEEP_INTERVAL, self._sweep)

    # Ends.

    def _end(self, error: Exception | None) -> None:
        if not self._is_over:
            self._is_over = True
            self._timer.cancel()
            for destination in list(self._destinations.values()):
                self._close_stream(destination)
            self._destinations.clear()
            self._loop.call_soon(self.report_lost, error)

    def close(self) -> None:
        self._end(None)

    def cut(self) -> None:
        self._end(None)

    def abort(self) -> None:
        self._end(None)

    def write_eof(self) -> None:
        self._end(None)

    def is_closing(self) -> bool:
        return self._is_over

    def half_closes(self) -> bool:
        """True: datagrams of any size and to any address are sent, as for our own agents."""
        return True

    # The rest of the transport.

    def is_reading(self) -> bool:
        return not self._paused

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False

    @property
    def bottom(self) -> StreamTransport:
        return self._session.bottom

    @property
    def socket_written(self) -> int:
        return self._session.bottom.socket_written

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._session.lower.get_extra_info(name, default)

    def get_write_buffer_size(self) -> int:
        return self._session.lower.get_write_buffer_size()

    def unsent(self) -> int:
        return 0


def _may_retry(destination: _Destination, now: float) -> bool:
    """Whether a destination that the agent could not reach is asked for again."""
    return destination.failed_at is not None and now - destination.failed_at >= RETRY_TIME
