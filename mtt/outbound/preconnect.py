"""Connections to the server that wait, handshaken, for the next application.

Theory of operation
-------------------
There shall always be `size` connections that are not too old. One that an application takes, that
ends or that ages is replaced in the background, a few at a time and, when that fails, less and less
often. Applications never wait for this: who finds nothing here makes a connection as usual.

What waits is read, because the end of a connection shows only to those who read: a paused
transport sees neither FIN nor RST. What the destination says at once (the banner of SSH or SMTP)
is kept for the application.

No data is ever sent twice. A connection that dies the moment it is taken is the application's
failure, as any other that breaks; what can be known before is looked at before (see `reuse`).
"""

from __future__ import annotations

import asyncio
import random
import select
from asyncio import get_running_loop  # by name, for tests that have their own time
from collections.abc import Awaitable, Callable, Collection

from mtt.errors import MttError, NetworkError, describe
from mtt.layers.base import Data, StreamTransport
from mtt.layers.holding import Holding, hand_over
from mtt.log import logger
from mtt.outbound.reuse import ReuseGuard, means_dead, slept_seconds
from mtt.outbound.upstream import Session, waiting_metrics

# The shortest time after which somebody on the way usually ends an idle connection is 60 s: the
# multi-user server, nginx in front of a server, shadowsocks behind it. The application gets what is
# left of that for its first byte, so no connection waits for longer than this, seconds ...
LONGEST_WAIT = 40.0
# ... nor for longer than this part of our own -timeout, which the server has as well as a rule.
PART_OF_TIMEOUT = 0.6
# When the successor is dialled, as parts of the longest wait. At random, so that those that were
# made together do not end together, and because a clockwork rhythm is a fingerprint. What is left
# after that is plenty for a dial.
REFRESH = (0.5, 0.75)
# Dials of ours at a time: an application that dials itself has better use for the line.
MOST_DIALS = 2
# A connection that ends so soon was not tired of waiting: the server or the destination refuses.
YOUNG = 5.0
# Seconds until the next try, doubled with each that fails.
FIRST_RETRY, LAST_RETRY = 1.0, 60.0
# Without a failure for so long, seconds, the next one is a new story. Longer than LAST_RETRY and a
# dial that times out, or the story would never go on.
CALM_TIME = 120.0
# How much a destination may say before anybody spoke to it, bytes; a banner has some hundred. With
# more we stop reading, and an end is noticed by the application.
MOST_EARLY = 16 * 1024

# Makes a connection, held by a `Holding`; raises MttError.
Connect = Callable[[], Awaitable[StreamTransport]]


class Preconnected:
    """Keeps `size` connections ready.

    Args:
        connect: makes one.
        size: how many; with 0 every `open()` is a `connect()`.
        timeout: seconds after which idle tunnels are closed.
        on_lost: called with the reason when a waiting connection ends, None for an orderly end.

    Attributes:
        used: how many waiting connections were taken so far.
    """

    is_multiplexed = False

    def __init__(
        self,
        connect: Connect,
        size: int,
        *,
        timeout: float,
        on_lost: Callable[[Exception | None], object] | None = None,
    ) -> None:
        self._connect = connect
        self._size = size
        self._longest = min(LONGEST_WAIT, PART_OF_TIMEOUT * timeout)
        self._on_lost = on_lost
        self.used = 0
        self._running = False
        self._generation = 0  # see renew()
        self._waiting: dict[_Waiting, None] = {}  # the oldest first
        self._guard = ReuseGuard()
        self._ending: set[_Waiting] = set()  # closed, and not gone yet
        self._dials: set[asyncio.Task[None]] = set()
        self._retry: asyncio.TimerHandle | None = None  # until it fires nothing is dialled
        self._delay = FIRST_RETRY
        self._failed_at = -CALM_TIME
        self._unreachable = False  # the last failure was one to connect

    def __len__(self) -> int:
        """How many connections wait."""
        return len(self._waiting)

    def start(self) -> None:
        """Begin to make connections."""
        self._running = True
        self._refill()

    @property
    def sessions(self) -> Collection[Session]:
        return ()

    def open_at_once(self) -> StreamTransport | None:
        """A connection that waited."""
        # The youngest first: the less it has waited, the less it can have suffered.
        for waiting in list(reversed(self._waiting)):
            if not (_now() < waiting.until and self._guard.admits(waiting)):
                self._remove(waiting)
                waiting.lower.abort()
            elif not waiting.has_news():
                self._remove(waiting)
                self.used += 1
                self._refill()
                return waiting.lower
        self._refill()
        return None

    async def open(self) -> StreamTransport:
        """A connection that waited, or a new one. Raises as `connect` does."""
        transport = self.open_at_once()
        if transport is None:
            transport = await self._connect()
            if self._unreachable:  # not any more
                self._try_again()
        return transport

    def ended(self, error: Exception | None) -> None:
        """In TLS 1.3 a server refuses a client that believes to be connected."""
        if self._on_lost is not None:
            self._on_lost(error)

    def renew(self) -> None:
        """Give up what waits and make it anew: certificates have changed."""
        self._generation += 1  # for dials that are under way with the old ones
        for waiting in list(self._waiting):
            self._give_up(waiting)
        self._try_again()

    def stop(self) -> None:
        """Close what waits, and make no more; `open()` goes on."""
        self._running = False
        self._stop_retry()
        for task in self._dials:
            task.cancel()
        for waiting in list(self._waiting):
            self._give_up(waiting)

    async def close(self) -> None:
        """Leave nothing behind."""
        self.stop()
        if self._dials:
            await asyncio.wait(self._dials)
        for waiting in list(self._ending):
            waiting.lower.abort()

    def metrics(self) -> str:
        return waiting_metrics(len(self), self.used)

    # Making.

    def _refill(self) -> None:
        if not self._running or self._retry is not None:
            return
        fresh = sum(not waiting.aged for waiting in self._waiting)
        missing = self._size - fresh - len(self._dials)
        for _ in range(min(missing, MOST_DIALS - len(self._dials))):
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
            self._admit(transport, generation)

    def _admit(self, transport: StreamTransport, generation: int) -> None:
        holding = transport.get_protocol()
        assert isinstance(holding, Holding)
        if transport.is_closing():  # the Holding was told why, or will be
            self._lost_young(holding.error)
            return
        waiting = _Waiting(self, transport)
        self._waiting[waiting] = None
        self._guard.add(waiting)
        hand_over(transport, waiting)
        if waiting not in self._waiting:  # it had ended
            return
        if generation != self._generation or not self._running:
            self._give_up(waiting)
            return
        waiting.until = _now() + self._longest
        waiting.timer = get_running_loop().call_later(
            self._longest * random.uniform(*REFRESH), self._age, waiting
        )
        if len(self._waiting) > self._size:  # it is the successor of one that has aged
            self._give_up(next(iter(self._waiting)))

    def _age(self, waiting: _Waiting) -> None:
        """Time for a successor; `waiting` may still be used until that is there."""
        waiting.aged = True
        waiting.timer = get_running_loop().call_later(
            max(0.0, waiting.until - _now()), self._give_up, waiting
        )
        self._refill()

    # Ends.

    def _remove(self, waiting: _Waiting) -> None:
        """`waiting` does not wait any more."""
        del self._waiting[waiting]
        self._guard.discard(waiting)
        if waiting.timer is not None:
            waiting.timer.cancel()
            waiting.timer = None

    def _give_up(self, waiting: _Waiting) -> None:
        self._remove(waiting)
        self._ending.add(waiting)
        waiting.lower.close()

    def lost(self, waiting: _Waiting, error: Exception | None) -> bool:
        """The peer has ended `waiting`, or it broke; whether it was still one of ours."""
        if waiting not in self._waiting:
            return False
        self._remove(waiting)
        # A reset may as well come from the destination, which tells nothing of the others.
        if means_dead(error) and not isinstance(error, ConnectionResetError):
            self._guard.doubt_all()
        if get_running_loop().time() - waiting.since < YOUNG:
            self._lost_young(error)
        elif self._on_lost is not None:
            self._on_lost(error)
        self._refill()
        return True

    def closing(self, waiting: _Waiting) -> None:
        """`waiting` is being closed."""
        self._ending.add(waiting)

    def gone(self, waiting: _Waiting) -> None:
        """Nothing is left of `waiting`."""
        self._ending.discard(waiting)

    # Failures.

    def _lost_young(self, error: Exception | None) -> None:
        if self._on_lost is not None:
            self._on_lost(error)
        self._unreachable = False
        self._failed(error or NetworkError("the server ends connections that wait at once"))

    def _failed(self, error: Exception) -> None:
        """Wait before the next dial; those that fail together count once."""
        if self._retry is not None or not self._running:
            return
        now = get_running_loop().time()
        if now - self._failed_at >= CALM_TIME:
            self._delay = FIRST_RETRY
            logger.info("-preconnect: %s; trying again from time to time", describe(error))
        else:
            self._delay = min(2 * self._delay, LAST_RETRY)
        self._failed_at = now
        self._retry = get_running_loop().call_later(
            self._delay * random.uniform(0.75, 1.0), self._try_again
        )

    def _try_again(self) -> None:
        self._unreachable = False
        self._stop_retry()
        self._refill()

    def _stop_retry(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None


class _Waiting(Holding):
    """The protocol of a connection that waits, and keeps what it says."""

    __slots__ = ("_stock", "aged", "since", "timer", "until")

    def __init__(self, stock: Preconnected, transport: StreamTransport) -> None:
        super().__init__()
        self.transport = transport
        self._stock = stock
        self.since = get_running_loop().time()
        self.until = 0.0  # by _now()
        self.aged = False
        self.timer: asyncio.TimerHandle | None = None

    @property
    def lower(self) -> StreamTransport:
        """The connection, until it is lost."""
        assert self.transport is not None
        return self.transport

    @property
    def heard_at(self) -> float:
        return self.since

    def ask(self) -> None:
        """Impossible: what is sent now is the application's."""

    def has_answered(self) -> bool:
        return False

    def has_news(self) -> bool:
        """Whether there is something to read, perhaps the end, that the event loop has not seen."""
        sock = self.lower.get_extra_info("socket")
        if sock is None or not hasattr(select, "poll"):  # Windows
            return False
        if sock.fileno() < 0:
            return True
        poll = select.poll()
        # A reset shows without being asked for.
        poll.register(sock.fileno(), select.POLLIN if self.lower.is_reading() else 0)
        return bool(poll.poll(0))

    def data_received(self, data: Data) -> None:
        self.early += data
        if len(self.early) >= MOST_EARLY:
            self.lower.pause_reading()

    def eof_received(self) -> bool:
        if not self._stock.lost(self, None):  # it is somebody's already
            return super().eof_received()
        self._stock.closing(self)
        return False  # closes it

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stock.lost(self, exc)
        self._stock.gone(self)


def _now() -> float:
    """Seconds of a clock that also runs while the computer sleeps, where there is one."""
    return get_running_loop().time() + slept_seconds()
