"""Keeps the plugin's connections out of the VPN that shadowsocks for Android provides.

On Android all traffic of apps goes through the VPN, and from there to the plugin, so the plugin's
own connections must be exempted to avoid a loop. Only the app can do that. It listens on a unix
socket and accepts descriptors: the client sends one byte with the descriptor (SCM_RIGHTS), and the
app answers with one byte, 0 for success.
"""

from __future__ import annotations

import asyncio
import socket

from mtt.errors import NetworkError, describe
from mtt.log import logger

# In the working directory, which the app chooses.
PROTECT_PATH = "protect_path"

# Seconds, as in v2ray-plugin.
PROTECT_LIMIT = 3.0

# Seconds until the next attempt when the app's backlog is full. A unix socket then reports EAGAIN,
# and polling it does not show when there is room.
BACKLOG_RETRY = 0.02

# The byte has no meaning, but without data the descriptor would not be delivered.
_REQUEST = b"\x01"
_SUCCESS = b"\x00"


class VpnProtection:
    """Asks the app to exempt sockets."""

    def __init__(self, path: str = PROTECT_PATH) -> None:
        self._path = path
        self._warned = False

    async def protect(self, sock: socket.socket) -> None:
        """Exempt `sock`, which must not be connected yet, from the VPN.

        Newer apps provide no protection and need none, so its absence causes only a warning.
        Raises NetworkError if the app refuses or does not answer in time.
        """
        if not (hasattr(socket, "AF_UNIX") and hasattr(socket, "send_fds")):
            self._warn("this platform cannot pass descriptors between processes")
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
