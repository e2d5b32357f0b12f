"""What client and server have in common: a listener, and the tunnels that came of it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Collection, Coroutine
from functools import partial
from logging import DEBUG, ERROR
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from mtt.address import Endpoint, peer_name
from mtt.errors import MttError, PeerError, StuckError, describe
from mtt.layers.base import StreamTransport
from mtt.layers.holding import Holding
from mtt.log import FAILURE_BURST, Throttle, logger
from mtt.net.admission import Admission
from mtt.net.listen import Listener
from mtt.observe import metrics
from mtt.observe.lag import LagMeter
from mtt.trust.reload import TlsFiles
from mtt.tunnels.relay import Relay

if TYPE_CHECKING:
    from mtt.net.resolve import Resolver
    from mtt.observe.hub import MetricsHub, Reporter
    from mtt.observe.server import MetricsServer

# Seconds between two looks at what is left when the service is to end: a blink for a person.
DRAIN_TICK = 0.05


class Carried(Protocol):
    """Something that carries bytes for somebody, such as a `Relay`."""

    started: float  # in the loop's time
    reason: str  # why it is over
    error: Exception | None  # what cut it, if it was cut

    @property
    def sent(self) -> int: ...
    @property
    def received(self) -> int: ...
    def abort(self, reason: str) -> None: ...


class Session(Protocol):
    """A multiplexed connection."""

    lower: StreamTransport

    @property
    def open_streams(self) -> int: ...
    def close(self) -> None: ...


_Carried = TypeVar("_Carried", bound=Carried)


class Service:
    """Owns every task and every tunnel, so that `close()` leaves nothing behind."""

    # What is worth a line when it cuts a tunnel. Peers that go away are routine for a server, and
    # so is an end that resets its connection (an OSError) for both.
    _news: tuple[type[MttError], ...] = (PeerError, StuckError)

    def __init__(self, *, timeout: float, max_conns: int = 0) -> None:
        self._timeout = timeout
        self._admission = Admission(max_conns, self._count_connections)
        self._listener: Listener | None = None
        self._tls_files: tuple[TlsFiles, ...] = ()
        self._tasks: set[asyncio.Task[None]] = set()
        self._relays: set[Carried] = set()
        self.counters = metrics.Counters()
        # Lines that clients can cause, by what they are about: none hides those of the others.
        self._failures, self._cuts, self._faults = (Throttle(FAILURE_BURST) for _ in range(3))
        self._lag: LagMeter | None = None  # while somebody may ask for it
        self._metrics_server: MetricsServer | None = None
        self._is_worker = False
        self._is_heavy: Callable[[int], bool] | None = None  # of a worker
        self._hub: socket.socket | None = None  # of a worker
        self._reporter: Reporter | None = None

    @property
    def addresses(self) -> list[str]:
        """Where the service listens, with the real port when port 0 was asked for."""
        return self._listener.addresses if self._listener is not None else []

    @property
    def tunnels(self) -> int:
        """How many tunnels are open or being opened."""
        return len(self._relays) + len(self._tasks)

    async def bind(self) -> None:
        """Take the addresses to listen on, for subclasses to do."""
        raise NotImplementedError

    def announce(self) -> None:
        """Say in the log what has started, for subclasses to do."""
        raise NotImplementedError

    async def _listen(self, accept: Callable[[], Any]) -> None:
        """Have `accept` make the protocols of connections. Raises StartError."""
        if self._listener is None:
            await self.bind()
        assert self._listener is not None
        yields = self._lets_others_go_first if self._is_worker else None
        self._listener.serve(self._admission.guard(accept), yields=yields)

    def _lets_others_go_first(self) -> bool:
        """Whether another worker should have the next connection."""
        assert self._is_heavy is not None
        return self._is_heavy(self._count_connections() + self._count_handshakes())

    def join(self, hub: socket.socket | None, is_heavy: Callable[[int], bool]) -> None:
        """Be one of several workers, see `mtt.process.runtime`."""
        self._is_worker = True
        self._is_heavy = is_heavy
        self._hub = hub
        if self._listener is not None:
            self._listener.disown()

    def _count_connections(self) -> int:
        """What -max-conns limits."""
        return self.tunnels

    def reload(self) -> None:
        """Read certificates and keys again; connections keep what they have."""
        if not any(files.files for files in self._tls_files):
            logger.info("there are no certificate files to read again")
        for files in self._tls_files:
            files.reload()

    def renew(self) -> None:
        """Read certificates and keys again if they have changed, before a start."""
        for files in self._tls_files:
            files.renew()

    @property
    def metrics_addresses(self) -> list[str]:
        """Where metrics are served."""
        return self._metrics_server.addresses if self._metrics_server is not None else []

    def metrics_page(self) -> str:
        """How the service is doing, in Prometheus' text format."""
        sessions = self._sessions()
        now = metrics.Now(
            connections=self._admission.accepted,
            refused=self._admission.refused,
            tunnels_refused=self._admission.tunnels_refused,
            handshakes=self._count_handshakes(),
            tunnels=len(self._relays),
            streams=sum(session.open_streams for session in sessions),
            sessions=len(sessions),
            bytes_up=self.counters.bytes_up + sum(relay.sent for relay in self._relays),
            bytes_down=self.counters.bytes_down + sum(relay.received for relay in self._relays),
        )
        lag = self._lag.lines() if self._lag is not None else ""
        return metrics.page(self.counters, now) + lag

    def _count_handshakes(self) -> int:
        """Connections between the two ends that are no tunnel yet, for subclasses to say."""
        return 0

    async def _serve_metrics(
        self, endpoint: Endpoint | None, unix_path: str, resolver: Resolver
    ) -> None:
        """Start what -metrics asks for, if it does. Raises StartError, all listening stopped."""
        if self._hub is not None:
            from mtt.observe.hub import Reporter

            self._lag = LagMeter()
            self._reporter = Reporter(self.metrics_page)
            await self._reporter.connect(self._hub)
        if self._is_worker or (endpoint is None and not unix_path):
            return
        from mtt.observe.server import MetricsServer  # not for a plugin that must listen at once

        self._metrics_server = MetricsServer(self.metrics_page)
        try:
            await self._metrics_server.start(endpoint, unix_path, resolver)
        except BaseException:
            self.cleanup()
            raise
        self._lag = LagMeter()
        logger.info("metrics on %s", ", ".join(self.metrics_addresses))

    def cleanup(self) -> None:
        """Stop listening; all that must happen even when the process is to be gone at once."""
        if self._listener is not None:
            self._listener.close()
        if self._metrics_server is not None:
            self._metrics_server.cleanup()

    @staticmethod
    def _metrics_hub(endpoint: Endpoint | None, unix_path: str) -> MetricsHub | None:
        """What serves -metrics for several workers, if it is asked for."""
        if endpoint is None and not unix_path:
            return None
        from mtt.observe.hub import MetricsHub

        return MetricsHub(endpoint, unix_path)

    async def drain(self) -> None:
        """Stop listening, and wait until the last tunnel has ended.

        Mux sessions end when nothing is left in them; peers go elsewhere with their next stream.
        """
        self.cleanup()
        while not self._retire_sessions() or self.tunnels:
            await asyncio.sleep(DRAIN_TICK)

    def _sessions(self) -> Collection[Session]:
        """The mux sessions there are, for subclasses to say."""
        return ()

    def _retire_sessions(self) -> bool:
        """Close idle sessions; whether no session is left that holds anything."""
        over = True
        for session in list(self._sessions()):
            # What streams wrote last may still be on its way when they are gone.
            if session.open_streams or session.lower.unsent():
                over = False
            elif not self._tasks:  # one of them may be about to use it
                session.close()
        return over

    async def close(self) -> None:
        """Stop listening and cut all tunnels."""
        self.cleanup()
        if self._lag is not None:
            self._lag.stop()
        if self._metrics_server is not None:
            self._metrics_server.close()
        for relay in list(self._relays):
            relay.abort("shutting down")
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for files in self._tls_files:
            await files.close()
        await asyncio.sleep(0)  # lets aborted transports close their descriptors
        if self._reporter is not None:
            await self._reporter.close()

    def _spawn(self, who: StreamTransport, work: Coroutine[Any, Any, None]) -> None:
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
                if isinstance(held, Holding) and held.is_over:
                    who.close()
                else:
                    who.abort()

        task.add_done_callback(done)

    async def _guarded(self, who: StreamTransport, work: Coroutine[Any, Any, None]) -> None:
        held = who.get_protocol()
        if isinstance(held, Holding):
            # Not before now: work that is cancelled before it begins has no chance to clean up.
            held.left = _cancel_of_this_task()
            if held.is_cut or held.is_over:
                held.left()
        try:
            await work
        except MttError as error:
            self._failures.warning("%s: %s", peer_name(who), error)
            who.abort()
        except Exception as error:
            self._faults.log(
                ERROR, "%s: internal error: %s", peer_name(who), describe(error)
            )
            logger.debug("where it happened:", exc_info=True)
            who.abort()
        finally:
            if isinstance(held, Holding):
                held.left = None  # a task that was cancelled refers to this frame

    def carry(
        self,
        near: StreamTransport,
        connect: Callable[[], Awaitable[StreamTransport]],
        at_once: Callable[[], StreamTransport | None] | None = None,
    ) -> None:
        """Join `near` to what `connect` makes, if there is room for one more tunnel.

        `at_once` is asked first: it has the same without waiting, or None.
        """
        if not self._admission.has_room():
            near.abort()
        elif at_once is not None and (far := at_once()) is not None:
            self._relay(near, far)
        else:
            self._spawn(near, self._connected(near, connect))

    async def _connected(
        self, near: StreamTransport, connect: Callable[[], Awaitable[StreamTransport]]
    ) -> None:
        with self.counters.dialling():
            far = await connect()
        self._relay(near, far)

    def _relay(
        self,
        near: StreamTransport,
        far: StreamTransport,
        *,
        on_done: Callable[[Relay], None] | None = None,
    ) -> Relay:
        """Join two transports; `on_done` is called once when both are gone."""
        return self._own(
            near, lambda done: Relay(near, far, timeout=self._timeout, done=done), on_done
        )

    def _own(
        self,
        near: StreamTransport,
        make: Callable[[Callable[[_Carried], None]], _Carried],
        on_done: Callable[[_Carried], None] | None = None,
    ) -> _Carried:
        """What `make` makes to carry bytes for `near`; what that is given it calls at its end."""
        if logger.isEnabledFor(DEBUG):  # who it is need not be found out otherwise
            logger.debug("%s: open", peer_name(near))
        # Not a function in here: with its cells that takes twice the memory.
        relay = make(partial(self._disown, near, on_done))
        self._relays.add(relay)
        near.engage(1)
        self.counters.tunnels += 1
        return relay

    def _disown(
        self,
        near: StreamTransport,
        on_done: Callable[[_Carried], None] | None,
        relay: _Carried,
    ) -> None:
        self._relays.discard(relay)
        near.engage(-1)
        self.counters.bytes_up += relay.sent
        self.counters.bytes_down += relay.received
        if logger.isEnabledFor(DEBUG):
            seconds = asyncio.get_running_loop().time() - relay.started
            logger.debug(
                "%s: closed after %.1f s, %d bytes up, %d bytes down: %s",
                peer_name(near), seconds, relay.sent, relay.received, relay.reason,
            )  # fmt: skip
        if isinstance(relay.error, self._news):
            self._cuts.warning("%s: %s", peer_name(near), relay.error)
        if on_done is not None:
            on_done(relay)


def _cancel_of_this_task() -> Callable[[], object]:
    task = asyncio.current_task()
    assert task is not None
    return task.cancel
