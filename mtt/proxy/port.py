"""The local port of the client: SOCKS5, SOCKS4, SOCKS4a and HTTP proxy.

    handshake -> open(host, port) -> answer success -> relay(near, far)
                             `-----------> answer why not -> lingering close

So success is what the owner knows to be one, and no byte is lost whoever speaks first. Plain HTTP
requests, of which each may go elsewhere, are the business of `http`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection

from mtt.address import peer_name
from mtt.errors import Cause, DestinationError, MttError, PeerError, describe
from mtt.layers.base import StreamProtocol, StreamTransport
from mtt.log import FAILURE_BURST, Throttle, logger
from mtt.net.admission import Pending
from mtt.outcome import Outcome
from mtt.proxy.association import IDLE_TIME, Association, PacketChannel
from mtt.proxy.handshake import ProxyHandshake
from mtt.proxy.http import Failure, HttpConnection
from mtt.tunnels.open_tunnels import OpenTunnels
from mtt.users.user import User
from mtt.wire import socks

# From accept to the complete request. Applications ask at once; a browser that connects ahead of
# need finds its connection closed and makes another.
HANDSHAKE_TIME = 10.0
# An answer that does not get on is given up after so many seconds, as tunnels are by default.
EXCHANGE_IDLE_TIME = 300.0
# UDP ports that clients hold at the same time, each with a stream to the server.
MAX_ASSOCIATIONS = 256


class ProxyPort:
    """Serves the connections of a proxy port.

    Args:
        open: connects to a host (IP literal or name, unresolved) and port. Raises
            DestinationError with the reason if the destination is known not to be reachable,
            other MttErrors if who should try cannot be asked.
        tunnels: owns what is carried for clients. While a UDP association lives, so does a task.
        open_packets: makes the channel for an association, to which that calls `deliver()` and
            `lost()`. Raises as `open`. None for no UDP.
        users: one of whom clients have to be, empty for no login.
        handshake_time: seconds, see HANDSHAKE_TIME.
        idle_time: seconds, see EXCHANGE_IDLE_TIME.
        udp_idle_time: seconds, see association.IDLE_TIME.
    """

    def __init__(
        self,
        open: Callable[[str, int], Awaitable[StreamTransport]],
        tunnels: OpenTunnels,
        *,
        open_packets: Callable[[Association], Awaitable[PacketChannel]] | None = None,
        users: Collection[User] = (),
        handshake_time: float = HANDSHAKE_TIME,
        idle_time: float = EXCHANGE_IDLE_TIME,
        udp_idle_time: float = IDLE_TIME,
    ) -> None:
        self._open = open
        self._tunnels = tunnels
        self._open_packets = open_packets
        self._users = tuple(users)
        self._udp_idle_time = udp_idle_time
        self._handshakes = Pending(what="proxy requests are incomplete")
        self._idle: set[HttpConnection] = set()  # those that wait for a request
        self._full = Throttle()
        self._errors, self._failures = Throttle(FAILURE_BURST), Throttle(FAILURE_BURST)
        self._closed = False
        self.associations = 0  # UDP ports that there are
        self.draining = False  # no further request is wanted
        self.handshake_time = handshake_time
        self.idle_time = idle_time
        self.has_udp = open_packets is not None
        self.has_login = bool(self._users)

    @property
    def pending(self) -> int:
        """How many connections have made no complete request yet."""
        return len(self._handshakes)

    def accept(self) -> StreamProtocol:
        """The protocol for a new connection (a protocol factory of asyncio)."""
        return ProxyHandshake(self)

    def drain(self) -> None:
        """End connections of HTTP clients that wait for a request, and the others with theirs."""
        self.draining = True
        for connection in list(self._idle):
            connection.retire()

    def close(self) -> None:
        """Cut the handshakes; what has been asked for is the business of the owner's tasks."""
        self._closed = True
        self._handshakes.close()

    # Called by the handshakes and the connections of HTTP clients.

    def begun(self, transport: StreamTransport) -> None:
        if self._closed:  # accepted in the very last moment
            transport.abort()
        else:
            self._handshakes.add(transport)

    def over(self, transport: StreamTransport) -> None:
        self._handshakes.discard(transport)

    def idle(self, connection: HttpConnection, transport: StreamTransport) -> None:
        self._idle.add(connection)
        self.begun(transport)

    def busy(self, connection: HttpConnection, transport: StreamTransport) -> None:
        self._idle.discard(connection)
        self.over(transport)

    def carry(self, connection: HttpConnection, transport: StreamTransport) -> None:
        """Look after a connection from its first request on."""

        def make(done: Callable[[HttpConnection], None]) -> HttpConnection:
            connection.done = done
            return connection

        self._tunnels.track(transport, make)

    def join(self, near: StreamTransport, far: StreamTransport) -> None:
        """Relay between a client and a stream that has been opened for it."""
        self._tunnels.relay(near, far)

    def open(
        self, connection: HttpConnection, transport: StreamTransport, host: str, port: int
    ) -> None:
        """Open a stream for `connection`, which has `transport`."""
        self._tunnels.spawn(transport, self._open_for(connection, transport, host, port))

    def accepts(self, user: bytes, password: bytes) -> bool:
        """Whether a client may ask for something."""
        # All of them are compared: how long that takes does not tell which one it was.
        verdicts = [known.accepts(user, password) for known in self._users]
        return not verdicts or any(verdicts)

    def tell(self, name: str, error: Exception) -> None:
        """Log why the client `name` gets nothing."""
        # What a client breaks is for its user to know; others come and go.
        if isinstance(error, PeerError):
            self._errors.warning("%s: %s", name, describe(error))
        else:
            logger.debug("%s: %s", name, describe(error))

    def connect(
        self, near: StreamTransport, host: str, port: int, success: bytes, failure: Failure
    ) -> None:
        """Open what was asked for, answer with `success` or a `failure`, and relay."""
        self._tunnels.spawn(near, self._connect(near, host, port, success, failure))

    def associate(self, near: StreamTransport, port: int) -> None:
        """Serve a UDP ASSOCIATE; `port` is where the client says that it sends from."""
        self._tunnels.spawn(near, self._associate(near, port))

    # The work.

    async def _connect(
        self, near: StreamTransport, host: str, port: int, success: bytes, failure: Failure
    ) -> None:
        try:
            far = await self._open(host, port)
        except MttError as error:
            self._refuse(near, error, failure)
            return
        if success and not near.is_closing():
            near.write(success)
        self._tunnels.relay(near, far)

    async def _open_for(
        self, connection: HttpConnection, near: StreamTransport, host: str, port: int
    ) -> None:
        if connection.over:
            return
        connection.task = asyncio.current_task()
        try:
            far = await self._open(host, port)
        except MttError as error:
            connection.not_opened(self._outcome(near, error))
        except asyncio.CancelledError:
            if connection.task is not None:
                raise
            # It needs none any more, and has had its end.
        else:
            connection.opened(far)

    async def _associate(self, near: StreamTransport, port: int) -> None:
        assert self._open_packets is not None
        association = Association(near, port, idle_time=self._udp_idle_time)
        self.associations += 1
        try:
            if self.associations > MAX_ASSOCIATIONS:
                self._full.warning(f"there are {MAX_ASSOCIATIONS} UDP associations: one refused")
                raise DestinationError(Outcome.GENERAL_FAILURE, "too many UDP associations")
            address = await association.open(self._open_packets)
            if not near.is_closing():
                near.write(socks.reply5(Outcome.SUCCEEDED, *address))
            name = peer_name(near)
            logger.debug("%s: UDP association: open", name)
            logger.debug("%s: UDP association: over: %s", name, await association.serve())
            _close(near)
        except MttError as error:
            self._refuse(near, error, socks.reply5)
        finally:
            self.associations -= 1
            association.close()


    def _refuse(self, near: StreamTransport, error: MttError, failure: Failure) -> None:
        """Answer that a request failed, and close."""
        outcome = self._outcome(near, error)
        if not near.is_closing():
            near.write(failure(outcome))
            _close(near)

    def _outcome(self, near: StreamTransport, error: MttError) -> Outcome:
        """What a client is told of `error`; the log gets all of it."""
        # A destination that does not answer is routine, a server is not.
        if isinstance(error, DestinationError):
            logger.debug("%s: %s", peer_name(near), describe(error))
            return error.outcome
        self._failures.warning("%s: %s", peer_name(near), describe(error))
        return Outcome.TIMED_OUT if error.cause is Cause.TIMEOUT else Outcome.GENERAL_FAILURE


def _close(near: StreamTransport) -> None:
    near.close()
