"""The proxy port: SOCKS5, SOCKS4, SOCKS4a and HTTP proxy.

    handshake, login -> route.open(host, port) -> answer success -> relay(near, far)
                                   `-----------> answer with the error -> lingering close

The answer is success only after `open` has succeeded, and no byte is lost, whichever side sends
first. `handshake.ProxyHandshake` is the protocol of new connections. `http` serves plain HTTP
requests, each of which may have another destination.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from typing import NamedTuple, Protocol

from mtt.address import peer_name
from mtt.errors import Cause, DestinationError, MttError, PeerError, describe
from mtt.layers.base import StreamTransport
from mtt.log import FAILURE_BURST, Throttle, logger
from mtt.net.admission import Pending
from mtt.outcome import Outcome
from mtt.proxy.association import IDLE_TIME, Association, PacketChannel
from mtt.tunnels.open_tunnels import OpenTunnels
from mtt.users.user import User
from mtt.wire import socks

# Seconds from accept to the complete request. Applications send it at once; a browser that connects
# in advance finds its connection closed and makes another.
HANDSHAKE_TIME = 10.0
# Idle timeout of an answer, seconds; the default of tunnels.
EXCHANGE_IDLE_TIME = 300.0
# Concurrent UDP associations of one client, each with a socket and a stream to the server.
MAX_ASSOCIATIONS = 256


# Makes the answer for an unreachable destination.
Failure = Callable[[Outcome], bytes]


class Connection(Protocol):
    """The connection of an HTTP client."""

    def retire(self) -> None:
        """Close if no request has begun."""


class Route(NamedTuple):
    """Where a client's connections go.

    Attributes:
        open: called with the client's connection, a host (IP literal or unresolved name), a port;
            connects. Raises DestinationError with the reason if the destination is unreachable, and
            another MttError if the server is.
        open_packets: opens the channel of an association, which calls its `deliver()` and `lost()`.
            Raises like `open`. None: no UDP.
    """

    open: Callable[[StreamTransport, str, int], Awaitable[StreamTransport]]
    open_packets: Callable[[Association], Awaitable[PacketChannel]] | None = None


# Called with the client's connection, a user name and a password; returns the user's route, None if
# they are wrong.
Login = Callable[[StreamTransport, bytes, bytes], Route | None]


def login_of(users: Collection[User], route: Route) -> Login:
    """The login of fixed users, who all have the same route."""

    def login(_: StreamTransport, user: bytes, password: bytes) -> Route | None:
        # Compare all users, so that the time does not reveal which one matched.
        verdicts = [known.accepts(user, password) for known in users]
        return route if any(verdicts) else None

    return login


class ProxyPort:
    """Serves the connections of a proxy port.

    Args:
        route: of clients without a login; None: clients must log in.
        tunnels: owns clients' tunnels, and a task for each UDP association.
        login: checks logins; None: the port has no users.
        idle_time: see EXCHANGE_IDLE_TIME.
        udp_idle_time: see association.IDLE_TIME.
        max_associations: maximum number of UDP associations; those of one address have
            MAX_ASSOCIATIONS.

    Attributes:
        associations: number of UDP associations.
        draining: whether every connection closes with its current request.
    """

    def __init__(
        self,
        route: Route | None,
        tunnels: OpenTunnels,
        *,
        login: Login | None = None,
        idle_time: float = EXCHANGE_IDLE_TIME,
        udp_idle_time: float = IDLE_TIME,
        max_associations: int = MAX_ASSOCIATIONS,
    ) -> None:
        self.route = route
        self.login = login
        self.tunnels = tunnels
        self._udp_idle_time = udp_idle_time
        self._handshakes = Pending(what="proxy requests are incomplete")
        self._idle: set[Connection] = set()  # connections between requests
        self._full = Throttle()
        self._errors, self._failures = Throttle(FAILURE_BURST), Throttle(FAILURE_BURST)
        self._closed = False
        self._max_associations = max_associations
        self._by_address: Counter[str] = Counter()  # associations
        self.draining = False
        self.idle_time = idle_time

    @property
    def pending(self) -> int:
        """Number of connections without a complete request."""
        return len(self._handshakes)

    @property
    def associations(self) -> int:
        return self._by_address.total()

    def drain(self) -> None:
        """Close idle connections of HTTP clients, and the others after their current request."""
        self.draining = True
        for connection in list(self._idle):
            connection.retire()

    def close(self) -> None:
        """Abort the handshakes. `tunnels` owns everything after a handshake."""
        self._closed = True
        self._handshakes.close()

    # Called by handshakes and HTTP connections.

    def handshake_begun(self, transport: StreamTransport) -> None:
        if self._closed:  # accepted just before the close
            transport.abort()
        else:
            self._handshakes.add(transport)

    def handshake_over(self, transport: StreamTransport) -> None:
        self._handshakes.discard(transport)

    def idle(self, connection: Connection, transport: StreamTransport) -> None:
        self._idle.add(connection)
        self.handshake_begun(transport)

    def busy(self, connection: Connection, transport: StreamTransport) -> None:
        self._idle.discard(connection)
        self.handshake_over(transport)

    def report(self, name: str, error: Exception) -> None:
        """Log why the client `name` was refused."""
        # The operator must know about the client's mistakes.
        if isinstance(error, PeerError):
            self._errors.warning("%s: %s", name, describe(error))
        else:
            logger.debug("%s: %s", name, describe(error))

    def log_lost(self, name: str, exc: Exception | None, *, begun: bool) -> None:
        """Log that the client `name` left, in the middle of its request if that has `begun`."""
        if begun:
            why = f"the client left in the middle of its request: {describe(exc)}"
        else:
            why = "closed without a byte"
        logger.debug("%s: %s", name, why)

    def outcome(self, near: StreamTransport, error: MttError) -> Outcome:
        """Log the `error` of `open`, and return the outcome for the client's answer."""
        # An unreachable destination is routine, an unreachable server is not.
        if isinstance(error, DestinationError):
            logger.debug("%s: %s", peer_name(near), describe(error))
            return error.outcome
        self._failures.warning("%s: %s", peer_name(near), describe(error))
        return Outcome.TIMED_OUT if error.cause is Cause.TIMEOUT else Outcome.GENERAL_FAILURE

    # Called by them in a task, see `OpenTunnels.spawn`.

    async def connect(
        self,
        route: Route,
        near: StreamTransport,
        destination: tuple[str, int],
        success: bytes,
        failure: Failure,
    ) -> None:
        """Open the destination, answer with `success` or a `failure`, and relay."""
        try:
            far = await route.open(near, *destination)
        except MttError as error:
            self._refuse(near, error, failure)
            return
        if not near.is_closing():
            near.write(success)
        self.tunnels.relay(near, far)

    async def associate(self, route: Route, near: StreamTransport, port: int) -> None:
        """Serve a UDP ASSOCIATE; `port` is the client's announced source port."""
        assert route.open_packets is not None
        association = Association(near, port, idle_time=self._udp_idle_time)
        peer = near.get_extra_info("peername")
        client = peer[0] if isinstance(peer, tuple) else ""
        try:
            self._count_association(client)
            address = await association.open(route.open_packets)
            if not near.is_closing():
                near.write(socks.reply5(Outcome.SUCCEEDED, *address))
            name = peer_name(near)
            logger.debug("%s: UDP association: open", name)
            logger.debug("%s: UDP association: over: %s", name, await association.serve())
            near.close()
        except MttError as error:
            self._refuse(near, error, socks.reply5)
        finally:
            self._by_address[client] -= 1
            if not self._by_address[client]:
                del self._by_address[client]
            association.close()

    def _count_association(self, client: str) -> None:
        """Count an association of an address. Raises DestinationError if it is one too many."""
        self._by_address[client] += 1
        for count, limit, whose in (
            (self.associations, self._max_associations, ""),
            (self._by_address[client], MAX_ASSOCIATIONS, f" of {client}"),
        ):
            if count > limit:
                self._full.warning(f"UDP association refused: the limit{whose} is {limit}")
                raise DestinationError(Outcome.GENERAL_FAILURE, "too many UDP associations")

    def _refuse(self, near: StreamTransport, error: MttError, failure: Failure) -> None:
        """Answer that a request failed, and close."""
        outcome = self.outcome(near, error)
        if not near.is_closing():
            near.write(failure(outcome))
            near.close()
