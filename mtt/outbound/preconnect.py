"""Preconnected connections: made and handshaken in advance for the next applications.

Theory of operation
-------------------
The pool keeps `size` fresh connections ready. A connection that is taken, ends or grows stale is
replaced in the background: a few at a time, and less and less often while that fails. Applications
never wait for the pool: without a ready connection, `open` dials as usual.

The pool reads from ready connections, because only a reader notices the end of a connection: a
paused transport sees neither FIN nor RST. Early data of the destination (the banner of SSH or SMTP)
is kept for the application.

No data is ever sent twice. If a connection breaks just after it was taken, the application sees a
broken connection. The pool therefore checks a connection before use (see `reuse`).
"""

from __future__ import annotations

import asyncio
import random
import select
from asyncio import get_running_loop  # by name, so that tests can replace it
from collections.abc import Awaitable, Callable

from mtt.errors import MttError, NetworkError, describe
from mtt.layers.base import Data, StreamTransport
from mtt.layers.parked import Parked, hand_over
from mtt.log import logger
from mtt.outbound.reuse import ReuseGuard, is_abnormal_end, slept_seconds
from mtt.outbound.upstream import Upstream, preconnect_metrics

# Maximum age of a ready connection, seconds. The shortest idle timeout on the way is usually 60 s:
# the multi-user server, nginx in front of a server, shadowsocks behind it. The application needs
# the rest for its first byte.
MAX_AGE = 40.0
# Maximum age as a fraction of the client's -timeout, which is usually the server's as well.
TIMEOUT_FRACTION = 0.6
# When the replacement is dialled, as a fraction of the maximum age. Random, so that connections
# made together do not end together, and because a regular interval is a fingerprint. The remaining
# time is ample for a dial.
REFRESH_FRACTION = (0.5, 0.75)
# Concurrent dials of the pool: few, because applications that dial share the same link.
MAX_DIALS = 2
# A connection that ends within this time, seconds, failed rather than expired: the server or the
# destination refuses it.
MIN_LIFETIME = 5.0
# Seconds until the next attempt: the first and the longest delay. Each failure doubles it.
FIRST_RETRY, MAX_RETRY = 1.0, 60.0
# After this long without a failure, seconds, the delay starts from FIRST_RETRY and the next failure
# is logged. Longer than MAX_RETRY plus a dial that times out, or every failure would be the first.
FAILURE_MEMORY = 120.0
# Bytes of early data that are read; a banner has a few hundred. Beyond that the connection is
# paused, and the application notices its end.
MAX_EARLY = 16 * 1024

# Makes a parked connection. Raises MttError.
Connect = Callable[[], Awaitable[StreamTransport]]


class PreconnectPool(Upstream):
    """Keeps `size` connections ready.

    Args:
        connect: makes a connection.
        size: how many to keep; with 0 every `open()` is a `connect()`.
        timeout: idle timeout of tunnels, seconds.
        on_lost: called with the error when a ready connection ends; None after an orderly end.

    Attributes:
        used: number of ready connections taken so far.
    """

    is_multiplexed = False

    def __init__(
        self,
        connect: Connect,
        size: int,
        *,
        timeout: float,
        on_lost: Callable[[Exception | None], object] = lambda _error: None,
    ) -> None:
        self._connect = connect
        self._size = size
        self._max_age = min(MAX_AGE, TIMEOUT_FRACTION * timeout)
        self._on_lost = on_lost
        self.used = 0
        self._running = False
        self._generation = 0  # see renew()
        self._ready: dict[_Preconnected, None] = {}  # oldest first
        self._guard = ReuseGuard()
        self._closing: set[_Preconnected] = set()  # closed, and not yet lost
        self._dials: set[asyncio.Task[None]] = set()
        self._retry_timer: asyncio.TimerHandle | None = None  # no dial until it fires
        self._retry_delay = FIRST_RETRY
        self._failed_at = -FAILURE_MEMORY
        self._unreachable = False  # whether the last failure was in connecting

    def __len__(self) -> int:
        """Number of ready connections."""
        return len(self._ready)

    def start(self) -> None:
        self._running = True
        self._refill()

    def open_at_once(self) -> StreamTransport | None:
        # Newest first: the least likely to have broken.
        for connection in list(reversed(self._ready)):
            if not (_now() < connection.usable_until and self._guard.admits(connection)):
                self._remove(connection)
                connection.lower.abort()
            elif not connection.has_pending_input():
                self._remove(connection)
                self.used += 1
                self._refill()
                return connection.lower
        self._refill()
        return None

    async def open(self) -> StreamTransport:
        transport = self.open_at_once()
        if transport is None:
            transport = await self._connect()
            if self._unreachable:  # the server is reachable again
                self._try_again()
        return transport

    def ended(self, error: Exception | None) -> None:
        # In TLS 1.3 the client's handshake can succeed before the server refuses it.
        self._on_lost(error)

    def renew(self) -> None:
        self._generation += 1  # pending dials use the old certificates
        for connection in list(self._ready):
            self._retire(connection)
        self._try_again()

    def stop(self) -> None:
        self._running = False
        self._stop_retry()
        for task in self._dials:
            task.cancel()
        for connection in list(self._ready):
            self._retire(connection)

    async def close(self) -> None:
        self.stop()
        if self._dials:
            await asyncio.wait(self._dials)
        for connection in list(self._closing):
            connection.lower.abort()

    def metrics(self) -> str:
        return preconnect_metrics(len(self), self.used)

    # Making connections.

    def _refill(self) -> None:
        if not self._running or self._retry_timer is not None:
            return
        fresh = sum(not connection.is_stale for connection in self._ready)
        missing = self._size - fresh - len(self._dials)
        for _ in range(min(missing, MAX_DIALS - len(self._dials))):
            task = get_running_loop().create_task(self._dial())
            self._dials.add(task)
            task.add_done_callback(self._dialled)

    def _dialled(self, task: asyncio.Task[None]) -> None:
        self._dials.discard(task)
        self._refill()

    async def _dial(self) -> None:
        generation = self._generation
        try:
            transport = await self._connect()
        except MttError as error:
            self._unreachable = True
            self._failed(error)
        except Exception as error:
            logger.error("-preconnect: internal error: %s", describe(error))
            logger.debug("where it happened:", exc_info=True)
            self._failed(error)
        else:
            self._add(transport, generation)

    def _add(self, transport: StreamTransport, generation: int) -> None:
        parked = transport.get_protocol()
        assert isinstance(parked, Parked)
        if transport.is_closing():  # `parked` has the reason, or will have it
            self._ended_early(parked.error)
            return
        connection = _Preconnected(self, transport)
        self._ready[connection] = None
        self._guard.add(connection)
        hand_over(transport, connection)
        if connection not in self._ready:  # it had ended
            return
        if generation != self._generation or not self._running:
            self._retire(connection)
            return
        connection.usable_until = _now() + self._max_age
        connection.timer = get_running_loop().call_later(
            self._max_age * random.uniform(*REFRESH_FRACTION), self._refresh, connection
        )
        if len(self._ready) > self._size:  # the replacement of a stale connection
            self._retire(next(iter(self._ready)))

    def _refresh(self, connection: _Preconnected) -> None:
        """Dial a replacement; `connection` stays usable until it is there."""
        connection.is_stale = True
        connection.timer = get_running_loop().call_later(
            max(0.0, connection.usable_until - _now()), self._retire, connection
        )
        self._refill()

    # End of connections.

    def _remove(self, connection: _Preconnected) -> None:
        del self._ready[connection]
        self._guard.discard(connection)
        if connection.timer is not None:
            connection.timer.cancel()
            connection.timer = None

    def _retire(self, connection: _Preconnected) -> None:
        self._remove(connection)
        self._closing.add(connection)
        connection.lower.close()

    def lost(self, connection: _Preconnected, error: Exception | None) -> bool:
        """Handle the end of `connection`. Returns False if it was not a ready connection."""
        if connection not in self._ready:
            return False
        self._remove(connection)
        # A reset may come from the destination; that says nothing about other connections.
        if is_abnormal_end(error) and not isinstance(error, ConnectionResetError):
            self._guard.verify_all()
        if get_running_loop().time() - connection.heard_at < MIN_LIFETIME:
            self._ended_early(error)
        else:
            self.ended(error)
        self._refill()
        return True

    # Failures.

    def _ended_early(self, error: Exception | None) -> None:
        self.ended(error)
        self._unreachable = False
        self._failed(error or NetworkError("the server ended a new connection at once"))

    def _failed(self, error: Exception) -> None:
        """Delay the next dial; simultaneous failures count once."""
        if self._retry_timer is not None or not self._running:
            return
        now = get_running_loop().time()
        if now - self._failed_at >= FAILURE_MEMORY:
            self._retry_delay = FIRST_RETRY
            logger.info("-preconnect: %s; trying again from time to time", describe(error))
        else:
            self._retry_delay = min(2 * self._retry_delay, MAX_RETRY)
        self._failed_at = now
        self._retry_timer = get_running_loop().call_later(
            self._retry_delay * random.uniform(0.75, 1.0), self._try_again
        )

    def _try_again(self) -> None:
        self._unreachable = False
        self._stop_retry()
        self._refill()

    def _stop_retry(self) -> None:
        if self._retry_timer is not None:
            self._retry_timer.cancel()
            self._retry_timer = None


class _Preconnected(Parked):
    """Protocol of a ready connection; keeps early data."""

    __slots__ = ("_pool", "heard_at", "is_stale", "timer", "usable_until")

    def __init__(self, pool: PreconnectPool, transport: StreamTransport) -> None:
        super().__init__()
        self.transport = transport
        self._pool = pool
        self.heard_at = get_running_loop().time()  # in its handshake
        self.usable_until = 0.0  # by the clock of _now()
        self.is_stale = False
        self.timer: asyncio.TimerHandle | None = None

    @property
    def lower(self) -> StreamTransport:
        """The transport, until it is lost."""
        assert self.transport is not None
        return self.transport

    def ping(self) -> None:
        """Do nothing: anything sent now would become application data."""

    def ping_answered(self) -> bool:
        return False

    def has_pending_input(self) -> bool:
        """Whether the socket has data or an end that the event loop has not read yet."""
        sock = self.lower.get_extra_info("socket")
        if sock is None or not hasattr(select, "poll"):  # Windows
            return False
        if sock.fileno() < 0:
            return True
        poll = select.poll()
        # poll reports a reset even without POLLIN.
        poll.register(sock.fileno(), select.POLLIN if self.lower.is_reading() else 0)
        return bool(poll.poll(0))

    def data_received(self, data: Data) -> None:
        self.early += data
        if len(self.early) >= MAX_EARLY:
            self.lower.pause_reading()

    def eof_received(self) -> bool:
        if not self._pool.lost(self, None):  # already taken
            return super().eof_received()
        self._pool._closing.add(self)
        return False  # close the transport

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._pool.lost(self, exc)
        self._pool._closing.discard(self)


def _now() -> float:
    """Seconds of a clock that counts the time asleep, where the system has one."""
    return get_running_loop().time() + slept_seconds()
