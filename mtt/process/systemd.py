"""The protocols between systemd, or a manager like it, and a service, without libsystemd.

Inherited listening sockets: sd_listen_fds(3). Status messages and the watchdog: sd_notify(3). Both
are configured by environment variables.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mtt.errors import UsageError, describe
from mtt.log import escape, logger
from mtt.options.flags import quoted

# SD_LISTEN_FDS_START of <systemd/sd-daemon.h>.
FIRST_DESCRIPTOR = 3
# A socket unit has a handful; systemd never passes more than this.
MAX_SOCKETS = 1024
# The name that sd_listen_fds_with_names(3) gives to unnamed sockets.
UNNAMED = "unknown"

# Seconds. The service manager reads at once unless the machine is overloaded; then losing a message
# is better than blocking the tunnels.
SEND_TIME = 0.5
# Messages per WATCHDOG_USEC, as sd_watchdog_enabled(3) advises.
BEATS = 2


class Inherited(NamedTuple):
    """A listening socket inherited at the start."""

    descriptor: int
    name: str  # FileDescriptorName= in the socket unit; by default the name of that unit

    @property
    def unnamed(self) -> bool:
        """Whether it has no name."""
        return self.name == UNNAMED or self.name.endswith(".socket")


def inherited_sockets(environ: Mapping[str, str]) -> tuple[Inherited, ...]:
    """The sockets passed to this process; `mtt.net.listen` checks their type. Raises UsageError."""
    # The variables are for another process, which started this one without removing them.
    if environ.get("LISTEN_PID") != str(os.getpid()):
        return ()
    given = environ.get("LISTEN_FDS", "")
    count = _number(given)
    if count is None or count > MAX_SOCKETS:
        raise UsageError(
            f"LISTEN_FDS: {quoted(given)} is not a number of sockets; "
            "unset it and LISTEN_PID to start without systemd"
        )
    names = environ["LISTEN_FDNAMES"].split(":") if "LISTEN_FDNAMES" in environ else []
    if names and len(names) != count:
        raise UsageError(f"LISTEN_FDNAMES: {len(names)} names for {count} sockets (LISTEN_FDS)")
    return tuple(
        Inherited(FIRST_DESCRIPTOR + at, (names[at] if names else "") or UNNAMED)
        for at in range(count)
    )


class ServiceManager:
    """Sends status messages to the service manager; does nothing if it wants none."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._address = ""
        self._socket: socket.socket | None = None
        self.beat_interval = 0.0  # seconds; 0 for no watchdog
        self._timer: asyncio.TimerHandle | None = None
        address = environ.get("NOTIFY_SOCKET", "")
        if not address:
            return
        if address[0] not in "/@" or not hasattr(socket, "AF_UNIX"):
            # Virtual machines may have "vsock:...", which is for their init only.
            logger.warning("NOTIFY_SOCKET: %s is not a unix socket", quoted(address))
            return
        self._address = "\0" + address[1:] if address[0] == "@" else address
        # Kept open: watchdog messages must be sent even when no descriptors are left.
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(SEND_TIME)
        if environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid()):
            microseconds = _number(environ.get("WATCHDOG_USEC", "0"))
            if microseconds is None:
                logger.warning("WATCHDOG_USEC is not a number: no watchdog")
            else:
                self.beat_interval = microseconds / 1e6 / BEATS

    def ready(self, addresses: Sequence[str]) -> None:
        """Report that the service has started, and where it listens."""
        self._send("READY=1", f"STATUS=listening on {', '.join(addresses)}")

    def keep_beating(self) -> None:
        """Send watchdog messages, if requested, from a timer: none while the loop is blocked."""
        if self.beat_interval > 0:
            self.beat()
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self.beat_interval, self.keep_beating)

    def beat(self) -> None:
        """Send one watchdog message; due every `beat_interval` seconds."""
        self._send("WATCHDOG=1")

    def stopping(self, status: str, seconds: float) -> None:
        """Report the stop, and request `seconds` for it, which may exceed the manager's limit."""
        self._send("STOPPING=1", f"STATUS={status}", f"EXTEND_TIMEOUT_USEC={seconds * 1e6:.0f}")

    def close(self) -> None:
        """Send no more messages."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *lines: str) -> None:
        if self._socket is None:
            return
        message = "\n".join(escape(line) for line in lines)
        try:
            self._socket.sendto(message.encode("utf-8", "backslashreplace"), self._address)
        except OSError as error:
            logger.warning("cannot notify the service manager of %s: %s", lines[0], describe(error))


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None
