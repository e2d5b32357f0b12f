"""How one test is run: deadlines, the event loop, and what counts as a leak."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from mtt.layers.poller import new_event_loop, poller

# asyncio's own 0.1 s makes a log line of every key generation and busy CI machine; a callback
# of a whole second is worth one anywhere.
SLOW_CALLBACK = 1.0

# What a test closed may still need a few turns of the loop or a round trip on loopback
# until it is gone; nothing legitimate needs a second.
SETTLE_TIME = 1.0

# How much later the alarm follows an async test's deadline: first the loop gets the chance
# to end the test in order; the alarm is for code that does not let the loop run.
ALARM_GRACE = 5.0


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Fail the test from a signal handler after `seconds`, wherever it is blocked."""

    def expired(_signum: int, _frame: FrameType | None) -> None:
        pytest.fail(f"the test was blocked for {seconds:g} s")

    if not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def run_async(test: Callable[[], Awaitable[None]], seconds: float) -> None:
    """Run the coroutine that `test()` makes in a fresh loop; fail on a deadline or a leak.

    The environment variable MTT_TEST_LOOP chooses the loop: "plain" is asyncio's default, "uvloop"
    is uvloop's, and the default is the programs' own.
    """
    with (
        deadline(seconds + ALARM_GRACE),
        asyncio.Runner(debug=True, loop_factory=_loop_factory()) as runner,
    ):
        runner.get_loop().slow_callback_duration = SLOW_CALLBACK
        runner.run(_checked(test, seconds))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    name = os.environ.get("MTT_TEST_LOOP")
    if name == "plain":
        return None
    if name != "uvloop":
        return new_event_loop
    import uvloop

    return uvloop.new_event_loop


async def _checked(test: Callable[[], Awaitable[None]], seconds: float) -> None:
    loop = asyncio.get_running_loop()
    reported: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _loop, context: reported.append(context))
    poller()  # its descriptor stays as long as the loop
    before = open_descriptors()
    try:
        async with asyncio.timeout(seconds) as limit:
            await test()
    except TimeoutError as error:
        if limit.expired():
            # The chain of causes shows where the test was waiting.
            raise TimeoutError(f"the test did not end within {seconds:g} s") from error
        raise
    tasks, descriptors = await _settle(before)
    if reported:
        cause = reported[0].get("exception")
        raise AssertionError(f"reported to the loop: {_words(reported[0])}") from cause
    assert not tasks, f"tasks left running: {tasks}"
    assert not descriptors, f"file descriptors left open: {descriptors}"


async def _settle(before: dict[int, str]) -> tuple[list[asyncio.Task[Any]], list[str]]:
    """Let what is closing finish; return the tasks and descriptors that stay nevertheless."""
    until = time.monotonic() + SETTLE_TIME
    for _ in range(5):
        await asyncio.sleep(0)
    gc.collect()
    while True:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        descriptors = [
            f"{number} -> {target}"
            for number, target in open_descriptors().items()
            if before.get(number) != target
        ]
        if not (tasks or descriptors) or time.monotonic() > until:
            return tasks, descriptors
        await asyncio.sleep(0.01)


def open_descriptors() -> dict[int, str]:
    """This process's open file descriptors and what they point at; empty without /proc."""
    found = {}
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir("/proc/self/fd"):
            # The descriptor that listdir itself used is gone by now.
            with contextlib.suppress(FileNotFoundError):
                found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    # uvloop opens this once per process, at the first subprocess, and keeps it.
    return {number: target for number, target in found.items() if target != os.devnull}


def _words(context: dict[str, Any]) -> str:
    parts = [str(context.get("message", "an error"))]
    parts += [f"{key}={value!r}" for key, value in context.items() if key != "message"]
    return "; ".join(parts)
