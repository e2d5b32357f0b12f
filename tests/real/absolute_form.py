"""A client of a plain HTTP proxy that does not know of it."""

from __future__ import annotations

import socket
from typing import Any


class AbsoluteForm(socket.socket):
    """A socket to a proxy: makes the target of the first request, `/`, absolute."""

    def __init__(self, sock: socket.socket, port: int) -> None:
        timeout = sock.gettimeout()
        super().__init__(fileno=sock.detach())
        self.settimeout(timeout)
        self._base: bytes | None = f"GET http://127.0.0.1:{port}/ ".encode()

    def sendall(self, data: Any, flags: int = 0) -> None:
        if self._base is not None:
            data = bytes(data).replace(b"GET / ", self._base, 1)
            self._base = None
        super().sendall(data, flags)
