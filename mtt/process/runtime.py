"""Runs a service in an event loop until a signal ends the process.

Shutdown: the first SIGTERM or SIGINT stops listening at once, so that a new process can take over,
and gives tunnels a grace period. When the last tunnel has ended, or the period is over, everything
is closed. A second signal, or the first one to a plugin, ends the process immediately.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from mtt.errors import UsageError, describe
from mtt.layers.poller import new_event_loop
from mtt.log import logger
from mtt.options.process import ProcessOptions
from mtt.process.systemd import ServiceManager

if TYPE_CHECKING:
    from mtt.process.supervisor_link import SupervisorLink

# Closing sends final messages to peers, which may be gone or slow. Service managers such as systemd
# allow 90 s, a person at a terminal much less.
CLOSE_LIMIT = 5.0


class Service:
    """Base of services that listen. Methods that are not overridden do nothing."""

    @property
    def addresses(self) -> Sequence[str]:
        """Listening addresses, with the actual port if port 0 was requested."""
        return ()

    @property
    def tunnels(self) -> int:
        """The number of tunnels that are open or opening."""
        return 0

    async def bind(self) -> None:
        """Bind the listening sockets; `start()` serves on them, possibly in a forked process.

        `start()` does whatever is not done here. Raises StartError.
        """

    async def start(self) -> None:
        """Start listening; serving continues in the background.

        Raises MttError, after cleaning up.
        """

    def announce(self) -> None:
        """Log what has started."""

    async def drain(self) -> None:
        """After `cleanup()`: wait until all tunnels have ended on their own."""

    async def close(self) -> None:
        """Stop listening and end all tunnels."""

    def cleanup(self) -> None:
        """Stop listening, and remove what would outlive the process, such as a unix socket.

        May be called more than once, and in a signal handler.
        """

    def reload(self) -> None:
        """Reload files that may have changed, on SIGHUP."""

    # For several processes, see `mtt.process.workers`.

    def hub(self) -> Hub | None:
        """The state shared by all workers, to run in its own process; None if there is none."""
        return None

    def join(self, hub: socket.socket | None, is_heavy: Callable[[int], bool]) -> None:
        """Run as one of several workers with shared listening sockets.

        Called in a newly forked process, before `start()`. `hub` is a socket to the hub, if there
        is one. `is_heavy` takes the number of connections and returns whether another worker should
        have the next one.
        """

    def renew(self) -> None:
        """As `reload()`, synchronous, for a process that never starts the service."""

    # Seconds between calls of `update()`; 0 for only those on SIGHUP.
    update_interval = 0.0

    def update(self, *, asked: bool) -> Sequence[int]:
        """In the process that has forked the workers: follow the configuration.

        `asked`: by SIGHUP. Returns the descriptors for `take_update()` in every worker, valid until
        the next call; none if nothing has changed.
        """
        return ()

    def take_update(self, descriptors: Sequence[int]) -> None:
        """In a worker: do the same. The descriptors are its own."""


class Hub(Service):
    """The state shared by all workers, in its own process."""

    def adopt(self, worker: socket.socket) -> None:
        """Add a worker by the socket to it; the socket closes when the worker ends."""
        raise NotImplementedError


# Takes a callback, and calls it when the process must end for a reason other than a signal.
Watch = Callable[[Callable[[], object]], object]

Handler = Callable[[int, FrameType | None], object]  # of a signal


def run(
    service: Service,
    *,
    options: ProcessOptions | None = None,
    plugin: bool = False,
    watch: Watch | None = None,
    manager: ServiceManager | None = None,
    link: SupervisorLink | None = None,
) -> NoReturn:
    """Start `service` and serve until SIGINT or SIGTERM ends the process with exit code 0.

    A `plugin` exits immediately. `watch` is called in the loop before the service starts; `manager`
    receives the status. With `link`, the supervisor is responsible for all of this. Must run in
    the main thread. Raises what `service.start()` raises, and UsageError if the event loop is not
    available.
    """
    options = options or ProcessOptions()
    listener = link or manager or ServiceManager({})
    raise_descriptor_limit()
    with (
        contextlib.closing(listener),
        asyncio.Runner(loop_factory=loop_factory(options.loop)) as runner,
    ):
        loop = runner.get_loop()
        loop.set_exception_handler(report_error)
        ending = Ending(service, loop, at_once=plugin)
        with ending.on_signals() if link is None else contextlib.nullcontext():
            runner.run(_serve(service, ending, options.grace, watch, listener, link))
            # Not by returning: interpreter exit waits for threads, and one that is stuck in
            # the system's resolver stays for half a minute.
            ending.exit()


async def _serve(
    service: Service,
    ending: Ending,
    grace: float,
    watch: Watch | None,
    manager: ServiceManager | SupervisorLink,
    link: SupervisorLink | None,
) -> None:
    if watch is not None:
        watch(ending.exit)
    if link is not None:
        link.attach(ask=ending.ask, exit=ending.exit, reload=service.reload)
    await service.start()
    if link is None:
        service.announce()
    manager.ready(service.addresses)
    manager.keep_beating()
    await ending.requested()
    service.cleanup()
    left = service.tunnels
    plan = stop_plan("stopping", left, grace)
    advice = "; a second signal cuts at once" if left and grace and link is None else ""
    # Of several processes, the supervisor says that all are stopping.
    level = logging.DEBUG if link is not None and not left else logging.INFO
    logger.log(level, "%s%s", plan, advice)
    manager.stopping(plan, grace + CLOSE_LIMIT)
    await stop(service, grace)


def stop_plan(what: str, tunnels: int, grace: float) -> str:
    """A log line for the end of a service, which is `what`, with so many tunnels."""
    if not tunnels:
        return what
    left = _tunnels(tunnels)
    return f"{what}: waiting up to {grace:g} s for {left}" if grace else f"{what}: {left} cut"


async def stop(service: Service, grace: float) -> None:
    """Let the tunnels of a service finish for at most `grace` seconds, and close it."""
    if grace:
        try:
            async with asyncio.timeout(grace):
                await service.drain()
        except TimeoutError:
            logger.info("%s cut after %g s", _tunnels(service.tunnels), grace)
    try:
        async with asyncio.timeout(CLOSE_LIMIT):
            await service.close()
    except TimeoutError:
        logger.debug("tunnels did not close in time")


def _tunnels(count: int) -> str:
    return f"{count} tunnel{'s' if count != 1 else ''}"


def raise_descriptor_limit() -> None:
    """Raise this process's limit of file descriptors to the hard limit.

    The usual soft limit of 1024 is for programs that use select(); a tunnel takes two descriptors.
    """
    try:
        import resource  # Unix only
    except ImportError:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Some systems (macOS) accept less than the hard limit; then the old limit stays.
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Ending:
    """Ends the process: at once, or after the service was closed."""

    def __init__(self, service: Service, loop: asyncio.AbstractEventLoop, *, at_once: bool) -> None:
        self._service = service
        self._ends_with_terminal = ends_with_terminal()
        self._loop = loop
        self._event = asyncio.Event()
        self._at_once = at_once
        self._orderly = False  # requested() is awaited, so the service will be closed

    async def requested(self) -> None:
        """Wait for the first signal, which then no longer ends the process by itself."""
        self._orderly = not self._at_once
        await self._event.wait()

    def ask(self, *_signal: object) -> None:
        """End the process in order; at once on a second call, or before the service has started."""
        # As a signal handler, it runs between any two byte codes of the main thread, so it must not
        # log.
        if not self._orderly:
            self.exit()
        self._orderly = False
        self._loop.call_soon_threadsafe(self._event.set)

    def exit(self) -> NoReturn:
        """End the process now, with exit code 0."""
        try:
            self._service.cleanup()
        finally:
            # In a finally: an exception must not keep a plugin alive, because shadowsocks-libev
            # waits for its end without a time limit.
            os._exit(0)

    def _on_hangup(self, _signum: int, _frame: FrameType | None) -> None:
        # A closing terminal also sends SIGHUP; then the process should end.
        if self._ends_with_terminal and not has_terminal():
            self.ask()
        else:
            self._loop.call_soon_threadsafe(self._service.reload)

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
        """Handle SIGINT, SIGTERM and SIGHUP while inside.

        Does not use loop.add_signal_handler(): Windows lacks it, and its callbacks wait in the
        loop's queue, while shadowsocks-rust sends SIGKILL after 10 ms.
        """
        handlers: dict[int, Handler] = {signal.SIGINT: self.ask, signal.SIGTERM: self.ask}
        if sys.platform != "win32":
            handlers[signal.SIGHUP] = self._on_hangup
        with handle_signals(handlers) as (wakeup, _):
            self._loop.add_reader(wakeup, read_wakeup, wakeup)
            try:
                yield
            finally:
                self._loop.remove_reader(wakeup)


@contextlib.contextmanager
def handle_signals(
    handlers: Mapping[int, Handler],
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Run `handlers` for signals while inside.

    Yields a socket that becomes readable with each signal, and its other end. A signal that arrives
    just before the process waits for events would otherwise go unnoticed until something else wakes
    it (on Windows, every signal would).
    """
    wakeup, waker = socket.socketpair()
    with wakeup, waker:
        for end in (wakeup, waker):
            end.setblocking(False)
        previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        try:
            yield wakeup, waker
        finally:
            signal.set_wakeup_fd(-1)
            for number, handler in previous.items():
                signal.signal(number, handler)


def read_wakeup(wakeup: socket.socket) -> None:
    """Read the signals' bytes, so that the socket is no longer readable."""
    with contextlib.suppress(BlockingIOError):
        wakeup.recv(4096)


def ends_with_terminal() -> bool:
    """Whether the process should end when its terminal is closed."""
    # nohup(1) starts it with SIGHUP ignored.
    nohup = sys.platform != "win32" and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return has_terminal() and not nohup


def has_terminal() -> bool:
    """Whether there is a controlling terminal, which disappears when its window is closed."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | getattr(os, "O_NOCTTY", 0)))
    except OSError:
        return False
    return True


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """The factory of the event loop `name`: auto, asyncio or uvloop.

    Raises UsageError if it is not installed.
    """
    if name != "asyncio":
        try:
            import uvloop
        except ImportError:
            if name == "uvloop":
                raise UsageError(
                    "-loop uvloop: the Python package uvloop is not installed; install it, "
                    "or use -loop auto"
                ) from None
        else:
            made_by: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
            return made_by
    # A selector loop, on Windows too: the proactor loop keeps a receive buffer per connection
    # until data arrives, but all connections here share one buffer, used only to read present data.
    return new_event_loop


def report_error(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """The loop's exception handler: logs one line, and a traceback only at level debug."""
    error = context.get("exception")
    reason = ""
    if isinstance(error, OSError):
        reason = f": {describe(error)}"
    elif isinstance(error, BaseException):  # a programming error, whose text says too little
        reason = f": {type(error).__name__}: {error}"
    # A transport also passes its error to connection_lost(), where it is logged with the peer.
    routine = isinstance(error, OSError) and "transport" in context
    level = logging.DEBUG if routine else logging.ERROR
    details = error if logger.isEnabledFor(logging.DEBUG) and not routine else None
    logger.log(level, "%s%s", context.get("message", "error"), reason, exc_info=details)
