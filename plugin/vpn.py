"""Keeps our own connections out of the VPN that shadowsocks for Android provides.

There everything an app sends goes through the VPN, and from there to us: our own connections
must be exempted, or they would run in a circle. Only the app may do that, so it listens on a
unix socket and takes descriptors: one byte together with the descriptor (SCM_RIGHTS), and one
byte back, 0 for success.
"""

from __future__ import annotations

import asyncio
import socket

from mtt.errors import NetworkError, describe
from mtt.log import logger

# In the working directory, which the app chooses.
PROTECT_PATH = "protect_path"

# What v2ray-plugin waits, in seconds.
PROTECT_LIMIT = 3.0

# How soon to try again when the app has more callers than fit into its backlog. A unix socket
# says EAGAIN then, and polling it does not tell when there is room again.
BACKLOG_RETRY = 0.02

# The byte means nothing, but without one the descriptor would not be delivered.
_REQUEST = b"\x01"
_SUCCESS = b"\x00"


class VpnProtection:
    """Asks the app to exempt sockets."""

    def __init__(self, path: str = PROTECT_PATH) -> None:
        self._path = path
        self._warned = False

    async def protect(self, sock: socket.socket) -> None:
        """Exempt `sock`, which should not be connected yet, from the VPN.

        Newer apps provide no protection and need none, so its absence is worth a warning only.
        Raises NetworkError: the app refused, or did not answer in time.
        """
        if not (hasattr(socket, "AF_UNIX") and hasattr(socket, "send_fds")):
            self._warn("this platform cannot pass sockets on")
            return
        try:
            async with asyncio.timeout(PROTECT_LIMIT):
                answer = await self._ask(sock)
        except FileNotFoundError:
            self._warn(f"there is no {self._path} in the working directory")
            return
        except TimeoutError:
            raise NetworkError(
                f"VPN protection: {self._path} did not answer within {PROTECT_LIMIT:g} s"
            ) from None
        except OSError as error:
            raise NetworkError(f"VPN protection: {self._path}: {describe(error)}") from None
        if answer != _SUCCESS:
            raise NetworkError(f"VPN protection: {self._path} refused")

    async def _ask(self, sock: socket.socket) -> bytes:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as app:
            app.setblocking(False)
            while True:
                try:
                    app.connect(self._path)
                    break
                except BlockingIOError:
                    await asyncio.sleep(BACKLOG_RETRY)
            socket.send_fds(app, [_REQUEST], [sock.fileno()])
            return await asyncio.get_running_loop().sock_recv(app, 1)

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("VPN protection: %s; connections go out unprotected", reason)
