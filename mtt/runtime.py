"""Runs a service in an event loop until a signal ends the process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn, Protocol

from mtt.errors import describe
from mtt.log import logger

# Closing says goodbye to peers, which may be gone or slow; service managers such as systemd
# allow 90 s, a person at a terminal much less.
CLOSE_LIMIT = 5.0


class Service(Protocol):
    """Something that listens.

    It may have a method `cleanup() -> None` too: called right before the process exits, maybe
    in a signal handler, it removes what would outlive the process, like a unix socket.
    """

    async def start(self) -> None:
        """Begin to listen; to serve goes on in the background.

        Raises MttError and leaves nothing behind then.
        """

    async def close(self) -> None:
        """Stop listening and end all tunnels."""


# Given a callback: calls it when the process has to end for another reason than a signal.
Watch = Callable[[Callable[[], object]], object]


def run(service: Service, *, plugin: bool = False, watch: Watch | None = None) -> NoReturn:
    """Start `service` and serve until SIGINT or SIGTERM ends the process with exit code 0.

    As `plugin` the process is gone at once. Standalone the service is closed first, and a
    second signal ends that too. `watch` is called in the loop before the service starts.
    Must run in the main thread. Raises what `service.start()` raises.
    """
    # The default except on Windows, whose proactor loop would hold on to a receive buffer until
    # data comes. Ours is one buffer for all connections, so it is lent only when data is there.
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        loop = runner.get_loop()
        loop.set_exception_handler(report)
        ending = _Ending(service, loop, at_once=plugin)
        with ending.on_signals():
            runner.run(_serve(service, ending, watch))
            # Not by returning: interpreter exit waits for threads, and one that is stuck in
            # the system's resolver stays for half a minute.
            ending.exit()


async def _serve(service: Service, ending: _Ending, watch: Watch | None) -> None:
    if watch is not None:
        watch(ending.exit)
    await service.start()
    await ending.requested()
    logger.info("stopping")
    try:
        async with asyncio.timeout(CLOSE_LIMIT):
            await service.close()
    except TimeoutError:
        logger.debug("gave up waiting for tunnels to close")


class _Ending:
    """How the process ends: at once, or after the service was closed."""

    def __init__(
        self, service: Service, loop: asyncio.AbstractEventLoop, *, at_once: bool
    ) -> None:
        self._cleanup: Callable[[], None] | None = getattr(service, "cleanup", None)
        self._loop = loop
        self._event = asyncio.Event()
        self._at_once = at_once
        self._orderly = False  # somebody waits for the event and will close the service

    async def requested(self) -> None:
        """Wait for the first signal; from now on that one ends nothing by itself."""
        self._orderly = not self._at_once
        await self._event.wait()

    def exit(self) -> NoReturn:
        """End the process now, with exit code 0."""
        try:
            if self._cleanup is not None:
                self._cleanup()
        finally:
            # In a finally: an exception must not keep a plugin alive, shadowsocks-libev waits
            # for its end without limit.
            os._exit(0)

    def _on_signal(self, _signum: int, _frame: FrameType | None) -> None:
        # Runs between any two byte codes of the main thread: no logging here.
        if not self._orderly:
            self.exit()
        self._orderly = False
        self._loop.call_soon_threadsafe(self._event.set)

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM while inside.

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
            self._loop.add_reader(receiver, _drain, receiver)
            previous = {
                number: signal.signal(number, self._on_signal)
                for number in (signal.SIGINT, signal.SIGTERM)
            }
            signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
            try:
                yield
            finally:
                signal.set_wakeup_fd(-1)
                for number, handler in previous.items():
                    signal.signal(number, handler)
                self._loop.remove_reader(receiver)


def _drain(receiver: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        receiver.recv(4096)


def report(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """The loop's exception handler: one line, with a traceback only for those who debug."""
    error = context.get("exception")
    # A transport hands its error to connection_lost() as well, and there it is logged with
    # the peer's name.
    routine = isinstance(error, OSError) and "transport" in context
    level = logging.DEBUG if routine else logging.ERROR
    reason = f": {_named(error)}" if isinstance(error, BaseException) else ""
    details = error if logger.isEnabledFor(logging.DEBUG) and not routine else None
    logger.log(level, "%s%s", context.get("message", "error"), reason, exc_info=details)


def _named(error: BaseException) -> str:
    """What went wrong, with the class for errors of this program, whose text says too little."""
    if isinstance(error, OSError):
        return describe(error)
    return f"{type(error).__name__}: {error}"
