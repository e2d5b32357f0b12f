"""The control socket between a supervisor and a worker, created when the worker is forked.

The supervisor sends commands instead of signals, because a signal does not say for which process it
is meant: a terminal sends Ctrl-C, and systemd SIGTERM, to supervisor and workers alike. Commands
are single bytes, one of them with a descriptor. The worker answers with lines of text. The socket
closes when either process ends, for any reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence

from mtt.errors import MttError, StartError, UsageError, describe
from mtt.log import escape, logger

# The supervisor's commands.
STOP, STOP_NOW, RELOAD, ADOPT, UPDATE = b"s", b"n", b"r", b"a", b"u"

# The worker's messages. The last two are followed by the error at its start.
READY, BEAT, WRONG, FAILED = "ready", "beat", "wrong", "failed"

# Bytes. A worker's messages are shorter; anything longer has another sender and is cut.
MAX_LINE = 4096

# Descriptors in one message: SCM_MAX_FD of <net/scm.h>.
MAX_DESCRIPTORS = 253

# Watchdog messages from a worker per message due from the supervisor.
BEATS = 2

Callback = Callable[[], object]


class SupervisorLink:
    """The worker's side: receives commands, and the status like a `systemd.ServiceManager`.

    Args:
        sock: non-blocking.
        beat_interval: seconds between watchdog messages; 0 for none.
        adopt: called with each socket that the supervisor passes with ADOPT.
        update: called with the descriptors that it passes with UPDATE.
    """

    def __init__(
        self,
        sock: socket.socket,
        beat_interval: float = 0.0,
        adopt: Callable[[socket.socket], object] | None = None,
        update: Callable[[Sequence[int]], object] | None = None,
    ) -> None:
        self._socket = sock
        self._beat_interval = beat_interval / BEATS
        self._adopt = adopt
        self._update = update
        self._commands: dict[bytes, Callback] = {}

    def attach(self, *, ask: Callback, exit: Callback, reload: Callback) -> None:
        """Call these when the supervisor says so, in the running loop; `exit` if it is gone."""
        self._commands = {STOP: ask, STOP_NOW: exit, RELOAD: reload, b"": exit}
        asyncio.get_running_loop().add_reader(self._socket, self._read)

    def ready(self, addresses: Sequence[str]) -> None:
        self._send(READY)

    def keep_beating(self) -> None:
        if self._beat_interval > 0:
            self._send(BEAT)
            asyncio.get_running_loop().call_later(self._beat_interval, self.keep_beating)

    def stopping(self, status: str, seconds: float) -> None:
        """Nothing to send: the supervisor gave the order."""

    def failed(self, error: MttError) -> None:
        """Report that the start failed."""
        self._send(f"{WRONG if isinstance(error, UsageError) else FAILED} {error}")

    def close(self) -> None:
        """Nothing to send: the supervisor notices the end of the process."""

    def _send(self, message: str) -> None:
        data = escape(message).encode("utf-8", "backslashreplace")[: MAX_LINE - 1]
        # _read() notices if the supervisor is gone; if it hangs, the service manager acts.
        with contextlib.suppress(OSError):
            self._socket.send(data + b"\n")

    def _read(self) -> None:
        try:
            words, descriptors, _, _ = socket.recv_fds(self._socket, 64, MAX_DESCRIPTORS)
        except BlockingIOError:
            return
        except OSError:
            words, descriptors = b"", []
        # The kernel ends a read behind a message with descriptors, so they belong to one command.
        if descriptors and UPDATE in words and self._update is not None:
            self._update(descriptors)
            descriptors = []
        for descriptor in descriptors:
            if self._adopt is None:
                os.close(descriptor)
            else:
                self._adopt(socket.socket(fileno=descriptor))
        if not words:
            logger.error("the supervisor is gone")
            self._commands[b""]()
        for byte in words:
            command = self._commands.get(bytes([byte]))
            if command is not None:
                command()


class Child:
    """The supervisor's side: a forked process and the non-blocking socket `line` to it."""

    def __init__(self, number: int, pid: int, line: socket.socket) -> None:
        self.number = number  # 0 for the hub
        self.pid = pid
        self.line = line
        self.ready = False
        self.born = self.beat = time.monotonic()
        self.failure: MttError | None = None
        self._heard = b""

    def __str__(self) -> str:
        return f"{f'worker {self.number}' if self.number else 'the hub'} (pid {self.pid})"

    def send(self, command: bytes) -> None:
        with contextlib.suppress(OSError):  # the process is gone, or has not read for a long time
            self.line.send(command)

    def send_update(self, descriptors: Sequence[int]) -> None:
        """Pass descriptors with UPDATE. On failure kills the process, which is outdated."""
        try:
            socket.send_fds(self.line, [UPDATE], descriptors)
        except OSError as error:
            logger.error("new configuration not sent to %s: %s", self, describe(error))
            os.kill(self.pid, signal.SIGKILL)

    def read(self) -> bool:
        """Read its messages; returns whether more may follow."""
        try:
            data = self.line.recv(MAX_LINE)
        except BlockingIOError:
            return True
        except OSError:
            data = b""
        *lines, self._heard = (self._heard + data).split(b"\n")
        for line in lines:
            word, _, rest = line.decode("utf-8", "backslashreplace").partition(" ")
            if word == BEAT:
                self.beat = time.monotonic()
            elif word == READY:
                self.ready = True
            else:
                self.failure = UsageError(rest) if word == WRONG else StartError(rest)
        return bool(data) and len(self._heard) <= MAX_LINE

    def ended(self) -> str | None:
        """How the process ended; None while it runs."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if not pid:
            return None
        code = os.waitstatus_to_exitcode(status)
        if code >= 0:
            return f"ended with exit code {code}"
        try:
            return f"was killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"was killed by signal {-code}"
