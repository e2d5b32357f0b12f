"""A forwarded TCP port: each connection becomes a stream through an agent."""

from __future__ import annotations

from anyproxy.forwarded import ForwardedPort, Means
from anyproxy.options import TCP
from mtt.address import Endpoint, ip_end, peer_name
from mtt.errors import DestinationError, describe
from mtt.layers.base import StreamProtocol, StreamTransport
from mtt.layers.parked import Parked
from mtt.log import logger
from mtt.net.listen import bind_now
from mtt.tunnels.relay import Relay
from mtt.wire import agent, proxy_protocol


class TcpPort(ForwardedPort):
    """A TCP port.

    Raises StartError if it cannot listen on `endpoint`.
    """

    protocol = TCP

    def __init__(self, means: Means, group: str, endpoint: Endpoint) -> None:
        super().__init__(means, group)
        self._listener = bind_now(endpoint)
        self.addresses = self._listener.addresses
        self._users = 0
        self._listener.serve(means.tunnels.admission.guard(self._accept))

    @property
    def users(self) -> int:
        return self._users

    def stop_listening(self) -> None:
        self._listener.close()

    def _accept(self) -> StreamProtocol:
        return Parked(self._accepted)

    def _accepted(self, near: StreamTransport) -> None:
        user = ip_end(near, "peername")
        if user is None or not self._allows(user[0]):
            near.abort()
        else:
            self._means.tunnels.spawn(near, self._carry(near, user))

    async def _carry(self, near: StreamTransport, user: tuple[str, int]) -> None:
        try:
            far, wanted = await self._open(agent.TCP, user)
        except DestinationError as error:  # routine; others are logged by `spawn`
            logger.debug("%s: port %s: %s", peer_name(near), self.addresses[0], describe(error))
            near.abort()
            return
        if wanted.proxy_protocol:
            own = ip_end(near, "sockname")
            far.write(proxy_protocol.encode(wanted.proxy_protocol, user, own))
        self._users += 1
        self._means.tunnels.relay(near, far, on_done=self._user_left)

    def _user_left(self, _: Relay) -> None:
        self._users -= 1
