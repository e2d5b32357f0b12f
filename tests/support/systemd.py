"""The service manager's end of sd_notify(3)."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

# Seconds; a program starts in a fraction of one, on busy machines in a few.
PATIENCE = 15.0


class Manager:
    """Takes the messages of a service, at a path in `directory` or an abstract `name`."""

    def __init__(self, directory: Path | None = None, name: str = "") -> None:
        self.address = str(directory / "notify") if directory is not None else f"@{name}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address.replace("@", "\0", 1) if name else self.address)

    def __enter__(self) -> Manager:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._socket.close()

    def hear(self, seconds: float = PATIENCE) -> str:
        """The next message. Raises TimeoutError if there is none."""
        self._socket.settimeout(seconds)
        return self._socket.recv(4096).decode()

    def rest(self) -> Iterator[str]:
        """The messages that are there already."""
        self._socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                yield self._socket.recv(4096).decode()
