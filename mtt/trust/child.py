"""Runs work that needs `cryptography` in a short-lived child process.

`cryptography` takes 10 MB and is needed for a few milliseconds: to make a certificate, and to
describe one in the log. That memory is freed when the child process exits.

A process with one thread forks, which costs 2 ms. One with several threads starts a new interpreter
instead: a fork would copy locks that other threads hold. If the child cannot start, fails or takes
too long, the work is repeated in this process, which also raises its errors.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import marshal
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar, TypeVarTuple, cast

from mtt.log import logger

_Result = TypeVar("_Result")
_Arguments = TypeVarTuple("_Arguments")

# Seconds. The work takes 0.1 s; a child that takes longer than this is stuck.
TIME_LIMIT = 5.0

# A forked child closes all descriptors but the standard streams.
_FIRST_DESCRIPTOR = 3

_PROGRAM = "import sys; sys.path[:] = {path!r}; from mtt.trust import child; child.answer()"

_is_allowed = False


def allow() -> None:
    """Let `run()` use child processes from now on. Call this from commands, which own the process.

    A program that embeds the tunnel may not want child processes.
    """
    global _is_allowed
    _is_allowed = True


def run(work: Callable[[*_Arguments], _Result], *arguments: *_Arguments) -> _Result:
    """Return `work(*arguments)`, computed in a child process if that saves memory.

    `work` is a module-level function without side effects; `marshal` must support its arguments and
    its result.
    """
    if _is_allowed and "cryptography" not in sys.modules:
        is_alone = threading.active_count() == 1 and hasattr(os, "fork")
        try:
            found = _forked(work, *arguments) if is_alone else _spawned(work, *arguments)
            return cast(_Result, marshal.loads(found))
        except (OSError, EOFError, ValueError, TypeError, subprocess.SubprocessError) as error:
            logger.debug("%s without a child process: %r", work.__name__, error)
    return work(*arguments)


def _forked(work: Callable[..., Any], *arguments: Any) -> bytes:
    """The marshalled result of `work`; empty if it raised an exception. Raises OSError."""
    near, far = socket.socketpair()
    with near, far:
        # Signal handlers of this process must not run in the child: they would end the service.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = os.fork()
            if pid == 0:
                _answer_and_exit(far, work, arguments)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        far.close()
        try:
            near.settimeout(TIME_LIMIT)
            return b"".join(iter(lambda: near.recv(1 << 16), b""))
        finally:
            os.kill(pid, signal.SIGKILL)  # it has exited or is stuck
            with contextlib.suppress(ChildProcessError):  # SIGCHLD is ignored
                os.waitpid(pid, 0)


def _answer_and_exit(
    line: socket.socket, work: Callable[..., Any], arguments: tuple[Any, ...]
) -> NoReturn:
    """Runs in the forked child."""
    try:
        gc.disable()  # it would run finalizers of the parent's objects
        # Otherwise connections that the parent closes would stay open.
        os.closerange(_FIRST_DESCRIPTOR, line.fileno())
        os.closerange(line.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
        line.sendall(marshal.dumps(work(*arguments)))
    finally:
        os._exit(0)


def _spawned(work: Callable[..., Any], *arguments: Any) -> bytes:
    """As `_forked()`, in a new interpreter. Raises OSError and SubprocessError."""
    root = str(Path(__file__).parents[2])
    program = _PROGRAM.format(path=[root, *sys.path])
    return subprocess.run(
        [sys.executable, "-I", "-c", program],
        input=marshal.dumps((work.__module__, work.__name__, arguments)),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        timeout=TIME_LIMIT,
        check=True,
    ).stdout


def answer() -> None:
    """Entry point of a spawned child: read the work from stdin, write its result to stdout."""
    module, name, arguments = marshal.load(sys.stdin.buffer)
    work = getattr(importlib.import_module(module), name)
    sys.stdout.buffer.write(marshal.dumps(work(*arguments)))
