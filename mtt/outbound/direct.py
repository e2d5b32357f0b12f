"""Direct TCP connections to the destinations that rules allow."""

from __future__ import annotations

from collections.abc import Callable

from mtt.address import Endpoint, host_port, is_ip
from mtt.errors import DestinationError, NetworkError
from mtt.layers.base import StreamTransport
from mtt.layers.parked import Parked
from mtt.net.dial import Dialer
from mtt.net.resolve import Resolver
from mtt.outcome import Outcome

# Seconds for all connection attempts, as in the reference implementation, not counting the name
# lookup (LOOKUP_TIMEOUT). TCP retransmits lost SYNs after 1 s and 3 s.
CONNECT_TIME = 5.0

# Whether the rules allow a host (as requested), the IP literal it leads to, and a port.
Allows = Callable[[str, str, int], bool]


class DirectDialer:
    """Connects to allowed destinations.

    A name is resolved once. The rules apply to each of its addresses, and only allowed addresses
    are connected to. So DNS rebinding is harmless: a different answer elsewhere, or a moment later,
    does not count.

    Args:
        resolver: resolves names.
        allows: the rules.
        connect_time: None for CONNECT_TIME.
    """

    def __init__(
        self, resolver: Resolver, allows: Allows, *, connect_time: float | None = None
    ) -> None:
        self._resolver = resolver
        self._allows = allows
        self._dialer = Dialer(resolver, timeout=connect_time or CONNECT_TIME)

    async def connect(self, host: str, port: int) -> StreamTransport:
        """Connect to `host` (IP literal or name) and `port`. The protocol is a `Parked`.

        Raises DestinationError.
        """
        allowed = await self.resolve(host, port)
        try:
            return await self._dialer.connect(Endpoint(allowed, port), Parked)
        except NetworkError as error:
            self._resolver.forget(host)
            raise DestinationError(error.outcome, f"{host_port(host, port)}: {error}") from None

    def connect_at_once(self, host: str, port: int) -> StreamTransport | None:
        """Connect to this machine without waiting; None if that fails or is not allowed.

        `host` is an IP literal of loopback, else the result is None. `connect()` reports the
        reason.
        """
        # First what costs nothing for other hosts.
        if not (host.startswith("127.") or host == "::1") or not is_ip(host):
            return None
        if not self._allows(host, host, port):
            return None
        return self._dialer.connect_at_once(Endpoint((host,), port), Parked)

    async def resolve(self, host: str, port: int) -> tuple[str, ...]:
        """The addresses of `host` (IP literal or name) that are allowed, at least one.

        Raises DestinationError.
        """
        try:
            addresses = await self._resolver.resolve(host, port)
        except NetworkError as error:
            raise DestinationError(error.outcome, str(error)) from None
        allowed = tuple(rest[0] for _, rest in addresses if self._allows(host, rest[0], port))
        if not allowed:
            text = f"{host_port(host, port)} is not allowed"
            raise DestinationError(Outcome.NOT_ALLOWED, text)
        return allowed
