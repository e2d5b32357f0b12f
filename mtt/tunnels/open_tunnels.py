"""The tunnels of a service: what is open, what is being opened, and how both end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from logging import DEBUG, ERROR
from typing import Any, Protocol, TypeVar

from mtt.address import peer_name
from mtt.errors import MttError, PeerError, StuckError, describe
from mtt.layers.base import StreamTransport
from mtt.layers.parked import Parked
from mtt.log import FAILURE_BURST, Throttle, logger
from mtt.net.admission import Admission
from mtt.observe.metrics import Counters
from mtt.tunnels.relay import Relay

# What is worth a line when it cuts a tunnel of a server. Peers that go away are routine there, and
# so is an end that resets its connection (an OSError) for servers and clients.
SERVER_NEWS: tuple[type[MttError], ...] = (PeerError, StuckError)
CLIENT_NEWS: tuple[type[MttError], ...] = (MttError,)  # also that the server is gone


class Carried(Protocol):
    """Something that carries bytes for a connection, such as a `Relay`."""

    started: float  # in the loop's time
    reason: str  # why it is over
    error: Exception | None  # what cut it, if it was cut

    @property
    def sent(self) -> int: ...
    @property
    def received(self) -> int: ...
    def abort(self, reason: str) -> None: ...


_Carried = TypeVar("_Carried", bound=Carried)


class OpenTunnels:
    """Owns every task and every tunnel, so that `close()` leaves nothing behind.

    Args:
        counters: where tunnels and their bytes are counted.
        timeout: seconds without a byte after which a tunnel is closed.
        max_conns: how many connections there may be, 0 for any number.
        idle: how many connections count besides, for they carry no tunnel at the moment.
        news: errors that are worth a line in the log when they cut a tunnel.

    Attributes:
        admission: keeps the number of connections below `max_conns`.
    """

    def __init__(
        self,
        counters: Counters,
        *,
        timeout: float,
        max_conns: int = 0,
        idle: Callable[[], int] = lambda: 0,
        news: tuple[type[MttError], ...] = SERVER_NEWS,
    ) -> None:
        self.admission = Admission(max_conns, lambda: self.connections)
        self.counters = counters
        self._timeout = timeout
        self._idle = idle
        self._news = news
        self._tasks: set[asyncio.Task[None]] = set()
        self._carried: set[Carried] = set()
        # Lines that clients can cause, by what they are about: none hides those of the others.
        self._failures, self._cuts, self._faults = (Throttle(FAILURE_BURST) for _ in range(3))

    def __len__(self) -> int:
        """How many are open or being opened."""
        return len(self._carried) + len(self._tasks)

    @property
    def open(self) -> int:
        """How many are open."""
        return len(self._carried)

    @property
    def opening(self) -> int:
        """How many are being opened."""
        return len(self._tasks)

    @property
    def connections(self) -> int:
        """What -max-conns limits."""
        return len(self._carried) + len(self._tasks) + self._idle()

    @property
    def bytes_up(self) -> int:
        """Bytes that all tunnels have carried so far from applications."""
        return self.counters.bytes_up + sum(carried.sent for carried in self._carried)

    @property
    def bytes_down(self) -> int:
        """The same to applications."""
        return self.counters.bytes_down + sum(carried.received for carried in self._carried)

    async def close(self) -> None:
        """Cut all tunnels, and cancel what is being opened."""
        for carried in list(self._carried):
            carried.abort("shutting down")
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    # Opening.

    def spawn(self, who: StreamTransport, work: Coroutine[Any, Any, None]) -> None:
        """Run `work`, which looks after the connection `who`; if it fails, so does `who`.

        And if `who` dies while it is held, or is over without a byte, there is nothing left to work
        for: otherwise a peer could have us dial without end by opening streams and ending them.
        """
        task = asyncio.get_running_loop().create_task(self._guarded(who, work))
        self._tasks.add(task)
        who.engage(1)

        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            who.engage(-1)
            if task.cancelled():  # perhaps before it took its first step
                work.close()
                held = who.get_protocol()
                if isinstance(held, Parked) and held.is_over:
                    who.close()
                else:
                    who.abort()

        task.add_done_callback(done)

    async def _guarded(self, who: StreamTransport, work: Coroutine[Any, Any, None]) -> None:
        held = who.get_protocol()
        if isinstance(held, Parked):
            # Not before now: work that is cancelled before it begins has no chance to clean up.
            held.left = _cancel_of_this_task()
            if held.is_cut or held.is_over:
                held.left()
        try:
            await work
        except MttError as error:
            self.failed(who, error)
            who.abort()
        except Exception as error:
            self._faults.log(
                ERROR, "%s: internal error: %s", peer_name(who), describe(error)
            )
            logger.debug("where it happened:", exc_info=True)
            who.abort()
        finally:
            if isinstance(held, Parked):
                held.left = None  # a task that was cancelled refers to this frame

    def failed(self, who: StreamTransport, error: MttError) -> None:
        """Say in the log why nothing is carried for `who`."""
        self._failures.warning("%s: %s", peer_name(who), error)

    def carry(
        self,
        near: StreamTransport,
        connect: Callable[[], Awaitable[StreamTransport]],
        at_once: Callable[[], StreamTransport | None] | None = None,
    ) -> None:
        """Join `near` to what `connect` makes, if there is room for one more tunnel.

        `at_once` is asked first: it has the same without waiting, or None.
        """
        if not self.admission.has_room():
            near.abort()
        elif at_once is not None and (far := at_once()) is not None:
            self.relay(near, far)
        else:
            self.spawn(near, self._connected(near, connect))

    async def _connected(
        self, near: StreamTransport, connect: Callable[[], Awaitable[StreamTransport]]
    ) -> None:
        with self.counters.dialling():
            far = await connect()
        self.relay(near, far)

    # Carrying.

    def relay(
        self,
        near: StreamTransport,
        far: StreamTransport,
        *,
        on_done: Callable[[Relay], None] | None = None,
    ) -> Relay:
        """Join two transports; `on_done` is called once when both are gone."""
        return self.own(
            near, lambda done: Relay(near, far, timeout=self._timeout, done=done), on_done
        )

    def own(
        self,
        near: StreamTransport,
        make: Callable[[Callable[[_Carried], None]], _Carried],
        on_done: Callable[[_Carried], None] | None = None,
    ) -> _Carried:
        """What `make` makes to carry bytes for `near`; what that is given it calls at its end."""
        if logger.isEnabledFor(DEBUG):  # who it is need not be found out otherwise
            logger.debug("%s: open", peer_name(near))
        # Not a function in here: with its cells that takes twice the memory.
        carried = make(partial(self._disown, near, on_done))
        self._carried.add(carried)
        near.engage(1)
        self.counters.tunnels += 1
        return carried

    def _disown(
        self,
        near: StreamTransport,
        on_done: Callable[[_Carried], None] | None,
        carried: _Carried,
    ) -> None:
        self._carried.discard(carried)
        near.engage(-1)
        self.counters.bytes_up += carried.sent
        self.counters.bytes_down += carried.received
        if logger.isEnabledFor(DEBUG):
            seconds = asyncio.get_running_loop().time() - carried.started
            logger.debug(
                "%s: closed after %.1f s, %d bytes up, %d bytes down: %s",
                peer_name(near), seconds, carried.sent, carried.received, carried.reason,
            )  # fmt: skip
        if isinstance(carried.error, self._news):
            self._cuts.warning("%s: %s", peer_name(near), carried.error)
        if on_done is not None:
            on_done(carried)


def _cancel_of_this_task() -> Callable[[], object]:
    task = asyncio.current_task()
    assert task is not None
    return task.cancel
