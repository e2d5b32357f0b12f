"""-workers: several processes with the same listening sockets, and one that looks after them.

Theory of operation
-------------------
The supervisor is the process that was started. It never has a thread or, once it has taken the
addresses to listen on, an event loop, so it can fork at any time, and what it made before is the
same in all workers: listening sockets, certificates, the keys of TLS session tickets. It forks

    the hub      if the service has something that belongs to all workers together
    the workers  each with an event loop and `runtime.run()`, as if it were alone

and then waits for signals, words of theirs (`tether`), and deaths. The listening sockets are
shared: who is idle takes the next connection (see `loads`), and what waits in the kernel's queue
outlives any worker. (With SO_REUSEPORT the kernel would deal connections out to queues without a
look at who is busy, and those in the queue of a worker that died would be lost.)

A worker that dies is replaced. The hub is not: what belongs to all would begin anew, so all do.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

from mtt import log
from mtt.errors import MttError, StartError, describe
from mtt.log import logger
from mtt.options.process import ProcessOptions
from mtt.process import runtime
from mtt.process.worker_loads import WorkerLoads
from mtt.process.runtime import CLOSE_LIMIT, Hub, Service
from mtt.process.systemd import ServiceManager
from mtt.process.tether import ADOPT, RELOAD, STOP, STOP_NOW, Child, Tether

# Seconds. A worker that dies is replaced at once, unless it was young; then after twice as long
# each time, so that one that cannot live costs little.
STABLE_AGE = 10.0
FIRST_DELAY = 0.1
MAX_DELAY = 5.0

# So many in a row that do not even get ready: the next would not, either. As long as others serve
# somebody we go on trying.
MAX_UNREADY = 5

# Seconds that the hub has more than the workers, to hear their last words.
HUB_GRACE = CLOSE_LIMIT + 1.0
# Beyond what they allow themselves, until they are killed: a machine may be busy.
PATIENCE = 2.0
# For those who are to end at once.
AT_ONCE = 1.0

# Seconds between two looks whether the program that started a plugin is still there.
PARENT_INTERVAL = 1.0


def run(
    service: Service,
    *,
    options: ProcessOptions,
    name: str,
    manager: ServiceManager | None = None,
    parent: int | None = None,
) -> int:
    """Serve with `options.workers` processes until SIGINT or SIGTERM; returns exit code 0.

    Args:
        service: not started; all workers have a copy.
        options: see there.
        name: of the program, for the log; `manager` hears how it goes.
        parent: of a plugin, which ends with that process, and at once.

    Must run in the main thread, and before any other is started. Raises StartError and UsageError:
    it cannot start, or cannot go on.
    """
    return _Supervisor(service, options, name, manager or ServiceManager({}), parent).run()


class _Supervisor:
    def __init__(
        self,
        service: Service,
        options: ProcessOptions,
        name: str,
        manager: ServiceManager,
        parent: int | None,
    ) -> None:
        self._service = service
        self._options = options
        self._name = name
        self._manager = manager
        self._parent = parent
        self._children: dict[int, Child] = {}  # by pid
        self._hub: Child | None = None
        self._loads = WorkerLoads(options.workers)
        self._due: dict[int, float] = {}  # when to fork which worker
        self._deaths = self._unready = 0  # in a row
        self._bound = self._started = self._stopping = False
        self._next_beat = 0.0
        # Set by signals.
        self._asked = 0  # how often to end
        self._hung_up = False
        self._ends_with_terminal = runtime.ends_with_terminal()

    def run(self) -> int:
        runtime.raise_descriptor_limit()
        self._selector = selectors.DefaultSelector()
        with contextlib.closing(self._manager), self._selector, self._signals():
            try:
                self._start()
                self._until(lambda: False)
                self._stop()
            finally:
                self._service.cleanup()
                self._end_all()
        return 0

    def _start(self) -> None:
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            runner.run(self._service.bind())
        self._bound = True
        # What is there from now on has one copy in memory as long as nobody writes to it, which
        # includes the garbage collector.
        gc.collect()
        gc.freeze()
        hub = self._service.hub()
        if hub is not None:
            self._hub = self._fork(0, hub)
            self._until(lambda: self._hub is not None and self._hub.ready)
            if self._asked:
                return
        for number in range(1, self._options.workers + 1):
            self._fork(number)
        self._until(lambda: not self._due and all(child.ready for child in self._all()))
        if self._asked:
            return
        self._started = True
        self._service.announce()
        self._manager.ready(runtime.listening_on(self._service))

    def _all(self) -> list[Child]:
        return list(self._children.values())

    def _stop(self) -> None:
        """Let the workers finish, unless we are asked again."""
        self._stopping = True
        if self._parent is not None or self._asked > 1 or not self._started:
            return
        # Before the workers do: who leaves them last frees our addresses for another program.
        self._service.cleanup()
        seconds = self._options.grace + HUB_GRACE + CLOSE_LIMIT
        logger.info("stopping")
        self._manager.stopping("stopping", seconds)
        for child in self._all():
            child.tell(STOP)
        until = time.monotonic() + seconds + PATIENCE
        while self._children and self._asked == 1 and (left := until - time.monotonic()) > 0:
            self._step(left)

    def _end_all(self) -> None:
        """End what is still there, at once."""
        self._stopping = True
        for child in self._all():
            child.tell(STOP_NOW)
        until = time.monotonic() + AT_ONCE
        while self._children and (left := until - time.monotonic()) > 0:
            self._step(left)
        for child in self._all():
            logger.warning("%s does not end by itself and is killed", child)
            os.kill(child.pid, signal.SIGKILL)
            os.waitpid(child.pid, 0)

    # Waiting.

    def _until(self, condition: Callable[[], bool]) -> None:
        """Look after everything until `condition` holds or we are to end."""
        while not (self._asked or condition()):
            self._step()

    def _step(self, seconds: float | None = None) -> None:
        """Wait for something to happen, for so long at most, and see to it."""
        for key, _ in self._selector.select(self._wait_time(seconds)):
            if isinstance(key.data, Child):
                self._hear(key.data)
            else:
                self._wakeup.recv(4096)
        self._reap()
        if self._parent not in (None, os.getppid()):
            self._asked += 1
        if self._hung_up:
            self._hung_up = False
            self._reload()
        now = time.monotonic()
        if self._started:
            self._send_watchdog(now)
        if self._stopping:
            return
        for number in [number for number, due in self._due.items() if due <= now]:
            del self._due[number]
            self._replace(number)

    def _wait_time(self, seconds: float | None) -> float | None:
        """How long to wait, None for as long as it takes."""
        now = time.monotonic()
        limits = [] if seconds is None else [seconds]
        if not self._stopping:
            limits += [due - now for due in self._due.values()]
        if self._parent is not None:
            limits.append(PARENT_INTERVAL)
        if self._started and self._manager.beat_interval:
            limits.append(self._next_beat - now)
        return max(0.0, min(limits)) if limits else None

    def _send_watchdog(self, now: float) -> None:
        """Tell the service manager that all is well, if it is."""
        interval = self._manager.beat_interval
        if interval and now >= self._next_beat:
            self._next_beat = now + interval
            if all(not child.ready or now - child.beat < interval for child in self._all()):
                self._manager.beat()

    def _reload(self) -> None:
        if self._ends_with_terminal and not runtime.has_terminal():
            self._asked += 1
            return
        for child in self._all():
            child.tell(RELOAD)

    # Children.

    def _hear(self, child: Child) -> None:
        was_ready = child.ready
        if not child.hear():
            # Dead, or as good as that; what became of it is known when it is reaped.
            self._selector.unregister(child.line)
        if child.ready and not was_ready:
            self._unready = 0

    def _reap(self) -> None:
        for child in self._all():
            cause = child.ended()
            if cause is None:
                continue
            if child.line in self._selector.get_map():
                self._hear(child)  # its last words
            if child.line in self._selector.get_map():
                self._selector.unregister(child.line)
            child.line.close()
            del self._children[child.pid]
            if child.number:
                self._loads.clear(child.number)
            if not self._stopping:
                self._handle_death(child, cause)

    def _handle_death(self, child: Child, cause: str) -> None:
        """A child has died when it should not."""
        if child is self._hub:
            raise child.failure or StartError(f"{child} {cause}; without it nothing can go on")
        if not child.ready:
            if child.failure is not None and not self._started:
                raise child.failure
            self._unready += 1
            serving = any(each.ready and each.number for each in self._all())
            if self._unready >= MAX_UNREADY and not serving:
                raise StartError(
                    f"{self._unready} workers in a row ended before they were ready, the last "
                    f"one: {child.failure or cause}"
                )
        logger.error("%s %s; a new one takes its place", child, child.failure or cause)
        now = time.monotonic()
        self._deaths = 0 if now - child.born >= STABLE_AGE else self._deaths + 1
        delay = min(MAX_DELAY, FIRST_DELAY * 2 ** (self._deaths - 2)) if self._deaths > 1 else 0.0
        self._due[child.number] = now + delay

    def _replace(self, number: int) -> None:
        self._service.renew()
        try:
            self._fork(number)
        except StartError as error:
            logger.error("%s; next try in %g s", error, MAX_DELAY)
            self._due[number] = time.monotonic() + MAX_DELAY

    def _fork(self, number: int, hub: Hub | None = None) -> Child:
        """Start worker `number`, or with number 0 the `hub`."""
        sockets: list[socket.socket] = []
        to_hub: socket.socket | None = None
        # A signal that comes now must find the worker's handlers, not ours, in the worker.
        handled = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD]
        before = signal.pthread_sigmask(signal.SIG_BLOCK, handled)
        try:
            sockets += socket.socketpair()
            line, theirs = sockets
            if self._hub is not None:
                from_worker, to_hub = socket.socketpair()
                sockets.append(to_hub)
                with from_worker, contextlib.suppress(OSError):
                    socket.send_fds(self._hub.line, [ADOPT], [from_worker.fileno()])
            pid = os.fork()
        except OSError as error:
            for sock in sockets:
                sock.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            raise StartError(f"cannot start another process: {describe(error)}") from None
        if pid == 0:
            try:
                self._leave(handled, line)
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
                self._work(number, hub, theirs, to_hub)
            finally:
                os._exit(1)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for sock in filter(None, (theirs, to_hub)):
            sock.close()
        line.setblocking(False)
        child = self._children[pid] = Child(number, pid, line)
        self._selector.register(line, selectors.EVENT_READ, child)
        logger.debug("%s started", child)
        return child

    # In the child.

    def _leave(self, handled: list[signal.Signals], line: socket.socket) -> None:
        """Drop what is the supervisor's: as long as we held its lines, others would not see them
        end."""
        signal.set_wakeup_fd(-1)
        for number in handled:
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._selector.close()
        self._manager.close()
        for each in (self._wakeup, self._waker, line, *(child.line for child in self._all())):
            each.close()

    def _work(
        self, number: int, hub: Hub | None, line: socket.socket, to_hub: socket.socket | None
    ) -> NoReturn:
        label = f"{self._name}[{'hub' if hub is not None else number}]"
        log.setup(self._options.log_level, label, self._options.log_format)
        line.setblocking(False)
        adopt = hub.adopt if hub is not None else None
        tether = Tether(line, self._manager.beat_interval, adopt)
        options = self._options
        try:
            self._service.join(to_hub, self._loads.for_worker(number))
            if hub is None:
                runtime.run(self._service, options=options, tether=tether)
            self._service.cleanup()
            options = options._replace(grace=options.grace + HUB_GRACE)
            runtime.run(hub, options=options, tether=tether)
        except MttError as error:
            tether.failed(error)
        except Exception as error:
            logger.debug("where it happened:", exc_info=True)
            tether.failed(StartError(f"internal error: {type(error).__name__}: {error}"))
        os._exit(1)

    # Signals.

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Note SIGINT, SIGTERM and SIGHUP while inside, and let them, and deaths, wake us."""
        self._wakeup, self._waker = socket.socketpair()
        with self._wakeup, self._waker:
            for end in (self._wakeup, self._waker):
                end.setblocking(False)
            self._selector.register(self._wakeup, selectors.EVENT_READ)
            handlers: dict[int, Callable[[int, FrameType | None], None]] = {
                signal.SIGINT: self._on_signal,
                signal.SIGTERM: self._on_signal,
                signal.SIGHUP: self._on_hangup,
                signal.SIGCHLD: lambda *_: None,
            }
            previous = {
                number: signal.signal(number, handler) for number, handler in handlers.items()
            }
            signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
            try:
                yield
            finally:
                signal.set_wakeup_fd(-1)
                for number, handler in previous.items():
                    signal.signal(number, handler)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._asked += 1
        if not self._bound:  # which may wait for a name server, and nobody depends on us yet
            self._service.cleanup()
            os._exit(0)

    def _on_hangup(self, _number: int, _frame: FrameType | None) -> None:
        self._hung_up = True
