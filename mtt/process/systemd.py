"""What systemd says to a service, and the other way round, without a library of its own.

Listening sockets that it hands over: sd_listen_fds(3). Messages to it, and the watchdog:
sd_notify(3). All of it is told by environment variables, which the caller passes in. Any other
service manager that speaks these protocols will do.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping
from typing import NamedTuple

from mtt.errors import UsageError, describe
from mtt.log import escape, logger
from mtt.options.flags import quoted

# SD_LISTEN_FDS_START of <systemd/sd-daemon.h>.
FIRST_DESCRIPTOR = 3
# A socket unit has a handful; a number beyond this is not one that systemd would say.
MAX_SOCKETS = 1024
# What sd_listen_fds_with_names(3) calls sockets without a name.
UNNAMED = "unknown"

# Seconds. The service manager reads at once unless the machine is in deep trouble; a message that
# is lost then is better than a tunnel that stands still.
SEND_TIME = 0.5
# Messages per WATCHDOG_USEC, as sd_watchdog_enabled(3) advises.
BEATS = 2


class Inherited(NamedTuple):
    """A listening socket that we were started with."""

    descriptor: int
    name: str  # FileDescriptorName= in the socket unit; by default the name of that unit

    @property
    def unnamed(self) -> bool:
        """Whether nobody has given it a name."""
        return self.name == UNNAMED or self.name.endswith(".socket")


def inherited_sockets(environ: Mapping[str, str]) -> tuple[Inherited, ...]:
    """The sockets that were handed to this process; none if it was not started for them.

    Whether they are sockets of the right kind shows when they are listened on. Raises UsageError
    if the variables make no sense.
    """
    # Variables for another process, which started us without taking them back.
    if environ.get("LISTEN_PID") != str(os.getpid()):
        return ()
    count = _number(environ.get("LISTEN_FDS", ""))
    if count is None or not 0 <= count <= MAX_SOCKETS:
        raise UsageError(
            f"LISTEN_FDS: {quoted(environ.get('LISTEN_FDS', ''))} is not a number of sockets; "
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
    """Who started us, if that wants to know how we are; otherwise all of this does nothing.

    Args:
        environ: NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID count.
    """

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
        # Kept open: we have to give signs of life when there are no descriptors left, too.
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(SEND_TIME)
        if environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid()):
            microseconds = _number(environ.get("WATCHDOG_USEC", "0"))
            if microseconds is None:
                logger.warning("WATCHDOG_USEC is not a number: no watchdog")
            else:
                self.beat_interval = microseconds / 1e6 / BEATS

    def ready(self, status: str) -> None:
        """We have started."""
        self._send("READY=1", f"STATUS={status}")

    def keep_beating(self) -> None:
        """Give signs of life from now on, if asked for, with a timer of the running loop.

        So a loop that hangs is found.
        """
        if self.beat_interval > 0:
            self.beat()
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self.beat_interval, self.keep_beating)

    def beat(self) -> None:
        """Give one sign of life; due every `beat_interval` seconds."""
        self._send("WATCHDOG=1")

    def stopping(self, status: str, seconds: float) -> None:
        """We are about to end, and may need so many `seconds`, more than the manager allows."""
        self._send("STOPPING=1", f"STATUS={status}", f"EXTEND_TIMEOUT_USEC={seconds * 1e6:.0f}")

    def close(self) -> None:
        """Send no more."""
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
            logger.warning("the service manager was not told %s: %s", lines[0], describe(error))


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None
