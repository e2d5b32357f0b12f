"""Runs a service in an event loop until a signal ends the process.

How it ends: the first SIGTERM or SIGINT stops listening at once, so that a new process can take
over, and gives tunnels a time of grace. When the last one is through, or time is up, everything is
closed. A second signal, or the first one of a plugin, ends the process on the spot.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import NoReturn, Protocol

from mtt.log import logger
from mtt.options.process import ProcessOptions
from mtt.process.eventloop import loop_factory, report_error
from mtt.process.systemd import ServiceManager

# Closing says goodbye to peers, which may be gone or slow; service managers such as systemd
# allow 90 s, a person at a terminal much less.
CLOSE_LIMIT = 5.0


class Service(Protocol):
    """Something that listens. What is not overridden does nothing."""

    @property
    def addresses(self) -> Sequence[str]:
        """Where it listens, for people."""
        return ()

    @property
    def tunnels(self) -> int:
        """How many tunnels are open or about to be."""
        return 0

    async def bind(self) -> None:
        """Take the addresses to listen on; serving there is for `start()`, maybe in a fork.

        What is not done in here `start()` does. Raises StartError.
        """
        return

    async def start(self) -> None:
        """Begin to listen; to serve goes on in the background.

        Raises MttError and leaves nothing behind then.
        """
        return

    def announce(self) -> None:
        """Say in the log what has started."""
        return

    async def drain(self) -> None:
        """After `cleanup()`: wait until the last tunnel has ended by itself."""
        return

    async def close(self) -> None:
        """Stop listening and end all tunnels."""
        return

    def cleanup(self) -> None:
        """Stop listening, and remove what would outlive the process, like a unix socket.

        May be called more than once, and in a signal handler.
        """
        return

    def reload(self) -> None:
        """Read again what may have changed in files: for SIGHUP."""
        return

    # For several processes, see `mtt.process.workers`.

    def hub(self) -> Hub | None:
        """What belongs to all workers together, for a process of its own; None without such."""
        return None

    def join(self, hub: socket.socket | None, is_heavy: Callable[[int], bool]) -> None:
        """Be one of several workers, which have the same listening sockets, from before the start.

        `hub` leads to the hub, if there is one. `is_heavy`, told how many connections there are,
        says whether another worker should have the next one. Called in a process that has just
        been forked.
        """
        return

    def renew(self) -> None:
        """As `reload()`, for a process that never starts the service; waits until it is done."""
        return


class Hub(Service, Protocol):
    """What belongs to all workers together."""

    def adopt(self, worker: socket.socket) -> None:
        """Take the line to another worker; its end is that worker's."""


class Manager(Protocol):
    """Who wants to hear how it goes."""

    def ready(self, status: str) -> None:
        """It has started."""

    def keep_beating(self) -> None:
        """Give signs of life, if wanted, as long as the running loop is well."""

    def stopping(self, status: str, seconds: float) -> None:
        """It is about to end, and may need so many `seconds`."""

    def close(self) -> None:
        """Tell no more."""


class Tether(Manager, Protocol):
    """What binds a worker to its supervisor, which stands between it and all signals."""

    def attach(
        self,
        *,
        ask: Callable[[], object],
        exit: Callable[[], object],
        reload: Callable[[], object],
    ) -> None:
        """Call these as the supervisor says, in the running loop; `exit` if that is gone."""


# Given a callback: calls it when the process has to end for another reason than a signal.
Watch = Callable[[Callable[[], object]], object]


def run(
    service: Service,
    *,
    options: ProcessOptions | None = None,
    plugin: bool = False,
    watch: Watch | None = None,
    manager: ServiceManager | None = None,
    tether: Tether | None = None,
) -> NoReturn:
    """Start `service` and serve until SIGINT or SIGTERM ends the process with exit code 0.

    As `plugin` the process is gone at once. `watch` is called in the loop before the service
    starts, `manager` hears how it goes. With `tether` all of this is the supervisor's business.
    Must run in the main thread. Raises what `service.start()` raises, and UsageError if there is
    no such event loop.
    """
    options = options or ProcessOptions()
    listener: Manager = tether or manager or ServiceManager({})
    raise_descriptor_limit()
    with (
        contextlib.closing(listener),
        asyncio.Runner(loop_factory=loop_factory(options.loop)) as runner,
    ):
        loop = runner.get_loop()
        loop.set_exception_handler(report_error)
        ending = Ending(service, loop, at_once=plugin)
        with ending.on_signals() if tether is None else contextlib.nullcontext():
            runner.run(_serve(service, ending, options.grace, watch, listener, tether))
            # Not by returning: interpreter exit waits for threads, and one that is stuck in
            # the system's resolver stays for half a minute.
            ending.exit()


async def _serve(
    service: Service,
    ending: Ending,
    grace: float,
    watch: Watch | None,
    manager: Manager,
    tether: Tether | None,
) -> None:
    if watch is not None:
        watch(ending.exit)
    if tether is not None:
        tether.attach(ask=ending.ask, exit=ending.exit, reload=service.reload)
    await service.start()
    if tether is None:
        service.announce()
    manager.ready(listening_on(service))
    manager.keep_beating()
    await ending.requested()
    service.cleanup()
    await _drain(service, grace, manager, quiet=tether is not None)
    try:
        async with asyncio.timeout(CLOSE_LIMIT):
            await service.close()
    except TimeoutError:
        logger.debug("gave up waiting for tunnels to close")


def listening_on(service: Service) -> str:
    """How `service` stands, for the service manager."""
    return f"listening on {', '.join(service.addresses)}"


async def _drain(service: Service, grace: float, manager: Manager, *, quiet: bool) -> None:
    """Let tunnels finish for `grace` seconds at most; if `quiet`, say only what becomes of them."""
    left = service.tunnels
    plan = "stopping"
    if left:
        tunnels = _tunnels(left)
        plan += f": {tunnels} may go on for {grace:g} s" if grace else f": {tunnels} cut"
    logger.log(logging.DEBUG if quiet and not left else logging.INFO, "%s", plan)
    manager.stopping(plan, grace + CLOSE_LIMIT)
    if not grace:
        return
    try:
        async with asyncio.timeout(grace):
            await service.drain()
    except TimeoutError:
        logger.info("%s cut after %g s", _tunnels(service.tunnels), grace)


def _tunnels(count: int) -> str:
    return f"{count} tunnel{'s' if count != 1 else ''}"


def raise_descriptor_limit() -> None:
    """Allow this process as many descriptors as it may have.

    The usual soft limit of 1024 is for programs with select(), and a tunnel takes two.
    """
    try:
        import resource  # Unix only
    except ImportError:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Some systems (macOS) take less than they say; the old limit stays then.
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Ending:
    """How the process ends: at once, or after the service was closed."""

    def __init__(
        self, service: Service, loop: asyncio.AbstractEventLoop, *, at_once: bool
    ) -> None:
        self._service = service
        self._ends_with_terminal = ends_with_terminal()
        self._loop = loop
        self._event = asyncio.Event()
        self._at_once = at_once
        self._orderly = False  # somebody waits for the event and will close the service

    async def requested(self) -> None:
        """Wait for the first signal; from now on that one ends nothing by itself."""
        self._orderly = not self._at_once
        await self._event.wait()

    def ask(self) -> None:
        """End the process in order; when asked again, or before the service has started, now."""
        if not self._orderly:
            self.exit()
        self._orderly = False
        self._loop.call_soon_threadsafe(self._event.set)

    def exit(self) -> NoReturn:
        """End the process now, with exit code 0."""
        try:
            self._service.cleanup()
        finally:
            # In a finally: an exception must not keep a plugin alive, shadowsocks-libev waits
            # for its end without limit.
            os._exit(0)

    def _on_signal(self, _signum: int, _frame: FrameType | None) -> None:
        # Runs between any two byte codes of the main thread: no logging here.
        self.ask()

    def _on_hangup(self, _signum: int, _frame: FrameType | None) -> None:
        # A terminal that is closed sends SIGHUP too: nobody is left there who wants us to go on.
        if self._ends_with_terminal and not has_terminal():
            self.ask()
        else:
            self._loop.call_soon_threadsafe(self._service.reload)

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
        """Handle SIGINT, SIGTERM and SIGHUP while inside.

        Not with loop.add_signal_handler(): Windows lacks it, and its callbacks wait for their
        turn in the loop, while shadowsocks-rust follows up with SIGKILL after 10 ms. A plain
        handler in turn needs the wakeup descriptor, or a signal that arrives just before the
        loop goes to sleep would stay unnoticed until something else wakes it; on Windows
        that is so for every signal.
        """
        receiver, sender = socket.socketpair()
        with receiver, sender:
            for end in (receiver, sender):
                end.setblocking(False)
            self._loop.add_reader(receiver, _read_out, receiver)
            handlers = {signal.SIGINT: self._on_signal, signal.SIGTERM: self._on_signal}
            if sys.platform != "win32":
                handlers[signal.SIGHUP] = self._on_hangup
            previous = {
                number: signal.signal(number, handler) for number, handler in handlers.items()
            }
            signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
            try:
                yield
            finally:
                signal.set_wakeup_fd(-1)
                for number, handler in previous.items():
                    signal.signal(number, handler)
                self._loop.remove_reader(receiver)


def ends_with_terminal() -> bool:
    """Whether we are to end when our terminal is closed."""
    return has_terminal() and not _has_nohup()


def has_terminal() -> bool:
    """Whether there is a controlling terminal, which is gone when its window is closed."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | getattr(os, "O_NOCTTY", 0)))
    except OSError:
        return False
    return True


def _has_nohup() -> bool:
    """Whether we were started to survive the terminal, as by nohup(1)."""
    return sys.platform != "win32" and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def _read_out(receiver: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        receiver.recv(4096)
