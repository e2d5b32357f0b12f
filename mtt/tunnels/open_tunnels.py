"""The tunnels of a service: opening, counting and closing them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Coroutine
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

# Errors that are logged as a warning when they cut a tunnel. A lost peer is routine for a server.
# A reset (an OSError) is routine for servers and clients.
SERVER_LOGGED_ERRORS: tuple[type[MttError], ...] = (PeerError, StuckError)
CLIENT_LOGGED_ERRORS: tuple[type[MttError], ...] = (MttError,)  # includes a lost server


class Carrier(Protocol):
    """An object that carries bytes for a connection, such as a `Relay`."""

    started: float  # loop time
    reason: str  # why it ended
    error: Exception | None  # the failure that cut it, if any

    @property
    def sent(self) -> int: ...
    @property
    def received(self) -> int: ...
    def abort(self, reason: str) -> None: ...


_Carrier = TypeVar("_Carrier", bound=Carrier)


class OpenTunnels:
    """Owns all tunnels and the tasks that open them; `close()` ends them all.

    Args:
        counters: counts tunnels and their bytes.
        timeout: idle timeout of a tunnel, seconds.
        max_conns: maximum number of connections (0: unlimited).
        idle: number of connections without a tunnel; they count towards `max_conns`.
        logged_errors: errors that are logged as a warning when they cut a tunnel.

    Attributes:
        admission: enforces `max_conns`.
    """

    def __init__(
        self,
        counters: Counters,
        *,
        timeout: float,
        max_conns: int = 0,
        idle: Callable[[], int] = lambda: 0,
        logged_errors: tuple[type[MttError], ...] = SERVER_LOGGED_ERRORS,
    ) -> None:
        self.admission = Admission(max_conns, lambda: self.connections)
        self.counters = counters
        self._timeout = timeout
        self._idle = idle
        self._logged_errors = logged_errors
        self._tasks: set[asyncio.Task[None]] = set()
        self._carriers: set[Carrier] = set()
        # One log throttle per kind of line that clients can cause, so that none hides the others.
        self._failures, self._cuts, self._faults = (Throttle(FAILURE_BURST) for _ in range(3))

    def __len__(self) -> int:
        """Number of tunnels that are open or opening."""
        return len(self._carriers) + len(self._tasks)

    @property
    def carriers(self) -> Collection[Carrier]:
        """What carries the open tunnels."""
        return self._carriers

    @property
    def open(self) -> int:
        """Number of open tunnels."""
        return len(self._carriers)

    @property
    def opening(self) -> int:
        """Number of tunnels that are opening."""
        return len(self._tasks)

    @property
    def connections(self) -> int:
        """Number of connections, as limited by -max-conns."""
        return len(self._carriers) + len(self._tasks) + self._idle()

    @property
    def bytes_up(self) -> int:
        """Bytes carried from applications, by all tunnels so far."""
        return self.counters.bytes_up + sum(carrier.sent for carrier in self._carriers)

    @property
    def bytes_down(self) -> int:
        """Bytes carried to applications, by all tunnels so far."""
        return self.counters.bytes_down + sum(carrier.received for carrier in self._carriers)

    async def close(self) -> None:
        """Abort all tunnels and cancel those that are opening."""
        for carrier in list(self._carriers):
            carrier.abort("shutting down")
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    # Opening.

    def spawn(self, connection: StreamTransport, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` for `connection`; if it fails, abort the connection.

        Cancel `work` if the connection is lost while parked, or ends without a byte. Otherwise a
        peer could cause endless dials by opening and ending streams.
        """
        task = asyncio.get_running_loop().create_task(self._guarded(connection, work))
        self._tasks.add(task)
        connection.add_carried(1)

        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            connection.add_carried(-1)
            if task.cancelled():  # perhaps before its first step
                work.close()
                held = connection.get_protocol()
                if isinstance(held, Parked) and held.is_over:
                    connection.close()
                else:
                    connection.abort()

        task.add_done_callback(done)

    async def _guarded(self, connection: StreamTransport, work: Coroutine[Any, Any, None]) -> None:
        held = connection.get_protocol()
        if isinstance(held, Parked):
            # Not earlier: a coroutine that is cancelled before its first step cannot clean up.
            held.ended = _cancel_of_this_task()
            if held.is_cut or held.is_over:
                held.ended()
        try:
            await work
        except MttError as error:
            self.failed(connection, error)
            connection.abort()
        except Exception as error:
            self._faults.log(
                ERROR, "%s: internal error: %s", peer_name(connection), describe(error)
            )
            logger.debug("where it happened:", exc_info=True)
            connection.abort()
        finally:
            if isinstance(held, Parked):
                held.ended = None  # break the cycle: a cancelled task refers to this frame

    def failed(self, connection: StreamTransport, error: MttError) -> None:
        """Log why `connection` gets no tunnel."""
        self._failures.warning("%s: %s", peer_name(connection), error)

    def carry(
        self,
        near: StreamTransport,
        connect: Callable[[], Awaitable[StreamTransport]],
        at_once: Callable[[], StreamTransport | None] | None = None,
    ) -> None:
        """Relay `near` to the result of `connect`, if `max_conns` allows one more tunnel.

        `at_once` is tried first; it returns the same without waiting, or None.
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
        """Relay between two transports; `on_done` is called once when both are lost."""
        return self.track(
            near, lambda done: Relay(near, far, timeout=self._timeout, done=done), on_done
        )

    def track(
        self,
        near: StreamTransport,
        make: Callable[[Callable[[_Carrier], None]], _Carrier],
        on_done: Callable[[_Carrier], None] | None = None,
        *,
        name: str = "",
    ) -> _Carrier:
        """Create an object that carries bytes for `near`, and track it until its end.

        Args:
            near: the connection.
            make: creates the object; receives the callback to call at its end.
            on_done: called at its end.
            name: of the peer, for the log. Without it, `near` is asked, which knows it at the end
                only if it was accepted.
        """
        if logger.isEnabledFor(DEBUG):  # peer_name() is expensive
            logger.debug("%s: open", name or peer_name(near))
        # A closure and its cells would take twice the memory.
        carrier = make(partial(self._untrack, near, on_done, name))
        self._carriers.add(carrier)
        near.add_carried(1)
        self.counters.tunnels += 1
        return carrier

    def _untrack(
        self,
        near: StreamTransport,
        on_done: Callable[[_Carrier], None] | None,
        name: str,
        carrier: _Carrier,
    ) -> None:
        self._carriers.discard(carrier)
        near.add_carried(-1)
        self.counters.bytes_up += carrier.sent
        self.counters.bytes_down += carrier.received
        if logger.isEnabledFor(DEBUG):
            seconds = asyncio.get_running_loop().time() - carrier.started
            logger.debug(
                "%s: closed after %.1f s, %d bytes up, %d bytes down: %s",
                name or peer_name(near), seconds, carrier.sent, carrier.received, carrier.reason,
            )  # fmt: skip
        if isinstance(carrier.error, self._logged_errors):
            self._cuts.warning("%s: %s", name or peer_name(near), carrier.error)
        if on_done is not None:
            on_done(carrier)


def _cancel_of_this_task() -> Callable[[], object]:
    task = asyncio.current_task()
    assert task is not None
    return task.cancel
