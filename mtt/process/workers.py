"""-workers: several processes with shared listening sockets, and their supervisor.

The supervisor is the process that was started. It has no threads and, once the listening sockets
are bound, no event loop, so it can fork at any time. All workers share what it created before:
listening sockets, certificates, the keys of TLS session tickets. It forks

    the hub      if the service has state shared by all workers
    the workers  each with an event loop and `runtime.run()`, like a single process

and then waits for signals, messages of its children (see `supervisor_link`), and their exits. The
listening sockets are shared: an idle worker takes the next connection (see `worker_loads`), and
connections in the kernel's queue survive the end of any worker. (With SO_REUSEPORT the kernel would
assign connections to queues without regard to load, and a dead worker's queue would be lost.)

A worker that dies is replaced. The hub is not: its state is lost, so all processes end.
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
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from mtt import log
from mtt.errors import MttError, StartError, describe
from mtt.log import logger
from mtt.options.process import ProcessOptions
from mtt.process import runtime
from mtt.process.runtime import CLOSE_LIMIT, Hub, Service
from mtt.process.supervisor_link import ADOPT, RELOAD, STOP, STOP_NOW, Child, SupervisorLink
from mtt.process.systemd import ServiceManager
from mtt.process.worker_loads import WorkerLoads

# Seconds. A worker that dies is replaced at once if it ran for STABLE_AGE; otherwise after a delay
# that doubles each time, so that a worker that keeps failing costs little.
STABLE_AGE = 10.0
FIRST_DELAY = 0.1
MAX_DELAY = 5.0

# The supervisor gives up after this many workers in a row that fail before they are ready, unless
# other workers are still serving.
MAX_UNREADY = 5

# Seconds that the hub runs longer than the workers, to read their final messages.
HUB_GRACE = CLOSE_LIMIT + 1.0
# Seconds beyond their own limits until children are killed: the machine may be busy.
PATIENCE = 2.0
# Seconds for children that must end at once.
AT_ONCE = 1.0

# Seconds between checks whether a plugin's parent is still running.
PARENT_INTERVAL = 1.0


class Supervisor:
    """Serves with `options.workers` processes.

    Args:
        service: not started; each worker has a copy.
        name: the program's name, for the log.
        manager: receives the status.
        parent: the process of the program whose plugin this is; the plugin ends with it, at once.
    """

    def __init__(
        self,
        service: Service,
        *,
        options: ProcessOptions,
        name: str,
        manager: ServiceManager | None = None,
        parent: int | None = None,
    ) -> None:
        self._service = service
        self._options = options
        self._name = name
        self._manager = manager or ServiceManager({})
        self._parent = parent
        self._children: list[Child] = []
        self._hub: Child | None = None
        self._loads = WorkerLoads(options.workers)
        self._due: dict[int, float] = {}  # time at which to fork each worker
        self._deaths = self._unready = 0  # consecutive
        self._bound = self._started = self._stopping = False
        self._next_beat = self._next_update = 0.0
        self._asked = 0  # number of requests to end
        self._hung_up = False  # by SIGHUP
        self._ends_with_terminal = runtime.ends_with_terminal()

    def run(self) -> int:
        """Serve until SIGINT or SIGTERM; returns exit code 0.

        Must run in the main thread, before any other thread is started. Raises StartError and
        UsageError if it cannot start or continue.
        """
        runtime.raise_descriptor_limit()
        self._selector = selectors.DefaultSelector()
        handlers: dict[int, runtime.Handler] = {
            signal.SIGINT: self._on_signal,
            signal.SIGTERM: self._on_signal,
            signal.SIGHUP: self._on_hangup,
            signal.SIGCHLD: lambda *_: None,  # wakes the supervisor
        }
        with (
            contextlib.closing(self._manager),
            self._selector,
            runtime.handle_signals(handlers) as (self._wakeup, self._waker),
        ):
            self._selector.register(self._wakeup, selectors.EVENT_READ)
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
        # Memory allocated so far is shared by all processes until one writes to it, and garbage
        # collections write to it.
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
        self._until(lambda: not self._due and all(child.ready for child in self._children))
        if self._asked:
            return
        self._started = True
        self._service.announce()
        self._manager.ready(self._service.addresses)

    def _stop(self) -> None:
        """Let the workers finish, unless a second request arrives."""
        self._stopping = True
        if self._parent is not None or self._asked > 1 or not self._started:
            return
        # Close the listening sockets before the workers do: the last process that closes them frees
        # the addresses for another program.
        self._service.cleanup()
        seconds = self._options.grace + HUB_GRACE + CLOSE_LIMIT
        logger.info("stopping")
        self._manager.stopping("stopping", seconds)
        for child in self._children:
            child.send(STOP)
        until = time.monotonic() + seconds + PATIENCE
        while self._children and self._asked == 1 and (left := until - time.monotonic()) > 0:
            self._step(left)

    def _end_all(self) -> None:
        self._stopping = True
        for child in self._children:
            child.send(STOP_NOW)
        until = time.monotonic() + AT_ONCE
        while self._children and (left := until - time.monotonic()) > 0:
            self._step(left)
        for child in self._children:
            logger.warning("%s did not end in time and was killed", child)
            os.kill(child.pid, signal.SIGKILL)
            os.waitpid(child.pid, 0)

    # Waiting.

    def _until(self, condition: Callable[[], bool]) -> None:
        """Handle events until `condition` holds or the end is requested."""
        while not (self._asked or condition()):
            self._step()

    def _step(self, seconds: float | None = None) -> None:
        """Wait at most `seconds` for events, and handle them."""
        for key, _ in self._selector.select(self._wait_time(seconds)):
            if isinstance(key.data, Child):
                self._read(key.data)
            else:
                runtime.read_wakeup(self._wakeup)
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
        if self._started and self._service.update_interval and now >= self._next_update:
            self._next_update = now + self._service.update_interval
            self._update(asked=False)
        for number in [number for number, due in self._due.items() if due <= now]:
            del self._due[number]
            self._replace(number)

    def _wait_time(self, seconds: float | None) -> float | None:
        """Seconds to wait for events; None for no limit."""
        now = time.monotonic()
        limits = [] if seconds is None else [seconds]
        if not self._stopping:
            limits += [due - now for due in self._due.values()]
        if self._parent is not None:
            limits.append(PARENT_INTERVAL)
        if self._started and self._manager.beat_interval:
            limits.append(self._next_beat - now)
        if self._started and self._service.update_interval:
            limits.append(self._next_update - now)
        return max(0.0, min(limits)) if limits else None

    def _send_watchdog(self, now: float) -> None:
        """Send a watchdog message if all children are responsive."""
        interval = self._manager.beat_interval
        if interval and now >= self._next_beat:
            self._next_beat = now + interval
            if all(not child.ready or now - child.beat < interval for child in self._children):
                self._manager.beat()

    def _reload(self) -> None:
        if self._ends_with_terminal and not runtime.has_terminal():
            self._asked += 1
            return
        for child in self._children:
            child.send(RELOAD)
        if self._started:  # otherwise it has just been read
            self._update(asked=True)

    def _update(self, *, asked: bool) -> None:
        descriptors = self._service.update(asked=asked)
        for child in self._children if descriptors else ():
            if child.number:
                child.send_update(descriptors)

    # Children.

    def _read(self, child: Child) -> None:
        was_ready = child.ready
        if not child.read():
            # It has ended or is about to; _reap() reports how.
            self._selector.unregister(child.line)
        if child.ready and not was_ready:
            self._unready = 0

    def _reap(self) -> None:
        for child in list(self._children):
            cause = child.ended()
            if cause is None:
                continue
            if child.line in self._selector.get_map():
                self._read(child)  # its final messages
            if child.line in self._selector.get_map():
                self._selector.unregister(child.line)
            child.line.close()
            self._children.remove(child)
            if child.number:
                self._loads.clear(child.number)
            if not self._stopping:
                self._handle_death(child, cause)

    def _handle_death(self, child: Child, cause: str) -> None:
        if child is self._hub:
            raise child.failure or StartError(f"{child} {cause}; the service cannot run without it")
        if not child.ready:
            if child.failure is not None and not self._started:
                raise child.failure
            self._unready += 1
            serving = any(each.ready and each.number for each in self._children)
            if self._unready >= MAX_UNREADY and not serving:
                raise StartError(
                    f"{self._unready} workers in a row ended before they were ready, the last "
                    f"one: {child.failure or cause}"
                )
        logger.error("%s %s; starting a new one", child, child.failure or cause)
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
        """Start worker `number`, or the `hub` as number 0."""
        sockets: list[socket.socket] = []
        to_hub: socket.socket | None = None
        # A signal that arrives now must run the worker's handlers in the worker, not these.
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
        child = Child(number, pid, line)
        self._children.append(child)
        self._selector.register(line, selectors.EVENT_READ, child)
        logger.debug("%s started", child)
        return child

    # In the child.

    def _leave(self, handled: list[signal.Signals], line: socket.socket) -> None:
        """Close the supervisor's sockets: while a child holds them, their peers see no EOF."""
        signal.set_wakeup_fd(-1)
        for number in handled:
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._selector.close()
        self._manager.close()
        for each in (self._wakeup, self._waker, line, *(child.line for child in self._children)):
            each.close()

    def _work(
        self, number: int, hub: Hub | None, line: socket.socket, to_hub: socket.socket | None
    ) -> NoReturn:
        label = f"{self._name}[{'hub' if hub is not None else number}]"
        log.setup(self._options.log_level, label, self._options.log_format)
        line.setblocking(False)
        adopt = hub.adopt if hub is not None else None
        link = SupervisorLink(
            line, self._manager.beat_interval, adopt, self._service.take_update
        )
        options = self._options
        try:
            self._service.join(to_hub, self._loads.for_worker(number))
            if hub is None:
                runtime.run(self._service, options=options, link=link)
            self._service.cleanup()
            options = options._replace(grace=options.grace + HUB_GRACE)
            runtime.run(hub, options=options, link=link)
        except MttError as error:
            link.failed(error)
        except Exception as error:
            logger.debug("where it happened:", exc_info=True)
            link.failed(StartError(f"internal error: {type(error).__name__}: {error}"))
        os._exit(1)

    # Signals.

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._asked += 1
        if not self._bound:  # bind() may wait for a name server, and no children exist yet
            self._service.cleanup()
            os._exit(0)

    def _on_hangup(self, _number: int, _frame: FrameType | None) -> None:
        self._hung_up = True
