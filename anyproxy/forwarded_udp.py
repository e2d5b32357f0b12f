"""A forwarded UDP port: each user's address has a stream through an agent, and gets the answers.

Only a user's first datagrams wait, until the stream is open. Later ones are dropped where they
would have to wait, as UDP permits.
"""

from __future__ import annotations

import asyncio
from typing import Any

from anyproxy.forwarded import ForwardedPort, Means
from anyproxy.options import UDP, OpenPort
from mtt.address import Endpoint, host_port, is_ip
from mtt.errors import MttError, describe
from mtt.layers.base import Data
from mtt.log import Throttle, logger
from mtt.net.listen import bind_udp
from mtt.net.udp_server import Control, UdpServerSocket
from mtt.proxy.uot_channel import UotChannel
from mtt.udp.flows import idle_limit
from mtt.wire import agent

# Addresses of users of a UDP port; each has a stream to the agent, and a socket there.
MAX_USERS = 1024
# Bytes of a user's datagrams that wait for the stream: more than a QUIC client sends at first.
MAX_HELD = 8 * 1024
# Datagrams read in one turn of the event loop, in fairness to other connections.
BATCH = 32

# What tells users apart: the socket, the user's address, and the address that it sends to.
_Key = tuple[UdpServerSocket, Any, Control]


class UdpPort(ForwardedPort):
    """A UDP port. Each address of a user has a stream of its own, so answers find their way.

    Raises StartError if it cannot listen on `endpoint`.
    """

    protocol = UDP

    def __init__(self, means: Means, group: str, endpoint: Endpoint) -> None:
        super().__init__(means, group)
        self._sockets = [UdpServerSocket(sock) for sock in bind_udp(endpoint)]
        self.addresses = [host_port(*sock.name[:2]) for sock in self._sockets]
        self._users: dict[_Key, _UdpUser] = {}
        self._full = Throttle()
        for sock in self._sockets:
            self._loop.add_reader(sock.sock, self._readable, sock)

    @property
    def users(self) -> int:
        return len(self._users)

    def stop_listening(self) -> None:
        for sock in self._sockets:
            self._loop.remove_reader(sock.sock)
            sock.close()
        self._sockets.clear()

    def close(self) -> None:
        super().close()
        for user in list(self._users.values()):
            user.end()

    def _readable(self, sock: UdpServerSocket) -> None:
        for _ in range(BATCH):
            try:
                payload, source, control = sock.receive()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:  # on Windows: an ICMP error about a sent datagram
                logger.debug("UDP port %s: %s", self.addresses[0], describe(error))
                continue
            key = sock, source, control
            user = self._users.get(key) or self._new_user(key)
            if user is not None:
                user.receive(payload)

    def _new_user(self, key: _Key) -> _UdpUser | None:
        if not self._allows(key[1][0]):
            return None
        if len(self._users) >= MAX_USERS:
            self._full.warning(
                "port %s: user refused: the limit is %d", self.addresses[0], MAX_USERS
            )
            return None
        user = self._users[key] = _UdpUser(self, key)
        return user

    # Called by users.

    async def open_channel(self, user: _UdpUser, address: Any) -> tuple[UotChannel, OpenPort]:
        """Open a user's channel, and return what it is for. Raises MttError."""
        stream, wanted = await self._open(agent.UDP, (address[0].partition("%")[0], address[1]))
        return UotChannel(stream, user, self._means.counters), wanted

    def idle_time(self, is_answered: bool) -> float:
        return idle_limit(self._means.udp_timeout, is_answered=is_answered)

    def forget(self, key: _Key) -> None:
        self._users.pop(key, None)


class _UdpUser:
    """The datagrams of one user, and the channel that carries them."""

    __slots__ = (
        "_active", "_channel", "_held", "_held_bytes", "_is_answered", "_key", "_loop", "_port",
        "_target", "_task", "_timer",
    )  # fmt: skip

    def __init__(self, port: UdpPort, key: _Key) -> None:
        self._loop = asyncio.get_running_loop()
        self._port: UdpPort | None = port  # None at its end
        self._key = key
        self._channel: UotChannel | None = None  # None until it is open
        self._target = ("", 0)
        self._held: list[bytes] = []  # until the channel is open
        self._held_bytes = 0
        self._is_answered = False
        self._active = self._loop.time()
        self._task = self._loop.create_task(self._open(port))
        self._timer = self._loop.call_later(port.idle_time(False), self._check_idle)

    def receive(self, payload: bytes) -> None:
        """Handle a datagram of the user."""
        self._active = self._loop.time()
        if self._channel is not None:
            self._channel.send(*self._target, payload)
        elif self._held_bytes + len(payload) <= MAX_HELD:
            self._held_bytes += len(payload)
            self._held.append(payload)

    def end(self) -> None:
        """Forget the user."""
        port, self._port = self._port, None
        if port is not None:
            port.forget(self._key)
            self._timer.cancel()
            self._task.cancel()
            if self._channel is not None:
                self._channel.close()

    async def _open(self, port: UdpPort) -> None:
        address = self._key[1]
        try:
            channel, wanted = await port.open_channel(self, address)
        except MttError as error:
            logger.debug("%s: UDP: %s", host_port(*address[:2]), describe(error))
            self.end()
            return
        if self._port is None:  # the stream ended at once
            return
        self._channel = channel
        self._target = wanted.local_host, wanted.local_port
        for payload in self._held:
            channel.send(*self._target, payload)
        self._held.clear()

    def _check_idle(self) -> None:
        port = self._port
        if port is None:
            return
        left = self._active + port.idle_time(self._is_answered) - self._loop.time()
        if left <= 0:
            self.end()
        else:
            self._timer = self._loop.call_later(left, self._check_idle)

    # Called by the channel.

    def deliver(self, host: str, port: int, payload: Data) -> None:
        wanted_host, wanted_port = self._target
        if port != wanted_port or (host != wanted_host and is_ip(wanted_host)):
            # The agent's socket takes datagrams from everywhere.
            logger.debug("a datagram of %s was dropped: not the target", host_port(host, port))
            return
        self._active = self._loop.time()
        self._is_answered = True
        sock, address, control = self._key
        try:
            sock.send(payload, address, control)
        except OSError as error:  # the send buffer is full, the user is unreachable, or the end
            logger.debug("%s: a datagram was dropped: %s", address[0], describe(error))

    def lost(self, error: Exception | None) -> None:
        self.end()
