"""anyproxy-gateway: agents join it, and users reach what is behind them through its proxies."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from anyproxy.credentials import Credentials
from anyproxy.forwarded import Means
from anyproxy.joining import AgentReader
from anyproxy.options import GatewayOptions, GroupOptions, ProxyOptions
from anyproxy.ports import Ports
from mtt.errors import DestinationError
from mtt.inbound.front import HeadReader
from mtt.layers.base import StreamProtocol, StreamTransport
from mtt.layers.parked import Parked, hand_over
from mtt.layers.smux import SmuxSession
from mtt.layers.tls import TlsLayer
from mtt.net.listen import Listener, bind
from mtt.net.resolve import Resolver
from mtt.outbound.groups import BALANCES, Agent, Balance, Groups
from mtt.outcome import Outcome
from mtt.proxy.association import Association
from mtt.proxy.handshake import ProxyHandshake
from mtt.proxy.port import ProxyPort, Route
from mtt.proxy.uot_channel import UotChannel
from mtt.trust.reload import TlsFiles, server_tls
from mtt.tunnels.server import ServerService
from mtt.wire.agent import TCP, UDP, Head


async def _no_agent(near: StreamTransport, host: str, port: int) -> StreamTransport:
    raise DestinationError(Outcome.NO_AGENT)


# Where users of a group without agents go: their password cannot be checked, and an agent may join
# at any moment.
NO_AGENT = Route(_no_agent)
# Routes to keep; agents may make new groups without end.
MAX_ROUTES = 1000


class Proxy:
    """One proxy port of the gateway: its listener, its TLS, its users."""

    def __init__(self, name: str, options: ProxyOptions, gateway: Gateway) -> None:
        self.name = name
        self.options = options
        self.tls = server_tls(options.tls) if options.tls is not None else None
        self._gateway = gateway
        self._listener: Listener | None = None
        has_login = options.group_login or options.login is not None
        self.port = ProxyPort(
            None if has_login else gateway.route(options.group),
            gateway.open_tunnels,
            login=self._login if has_login else None,
            idle_time=gateway.idle_time,
            udp_idle_time=gateway.udp_idle_time,
        )

    @property
    def addresses(self) -> list[str]:
        return self._listener.addresses if self._listener is not None else []

    async def start(self, resolver: Resolver) -> None:
        """Listen. Raises StartError."""
        self._listener = await bind(self.options.bind, "", resolver=resolver)
        self._listener.serve(self._gateway.open_tunnels.admission.guard(self._accept))
        if self.tls is not None:
            self.tls.follow()

    def cleanup(self) -> None:
        if self._listener is not None:
            self._listener.close()

    def _accept(self) -> StreamProtocol:
        if self.tls is None:
            return ProxyHandshake(self.port)
        port = self.port

        def ready(transport: StreamTransport) -> None:
            port.handshake_over(tls)
            hand_over(transport, ProxyHandshake(port))

        parked = Parked(ready)
        tls = TlsLayer(parked, self.tls.context(), server_side=True)
        parked.failed = partial(self._failed, tls)
        port.handshake_begun(tls)
        return tls

    def _failed(self, tls: TlsLayer, error: Exception) -> None:
        self.port.handshake_over(tls)
        self.port.report(str(tls.get_extra_info("peername")), error)

    def _login(self, near: StreamTransport, user: bytes, password: bytes) -> Route | None:
        peer = near.get_extra_info("peername")
        address = peer[0] if isinstance(peer, tuple) else ""
        login, credentials = self.options.login, self._gateway.credentials
        if credentials.throttle.blocks(address):
            return None
        if login is not None and login.accepts(user, password):
            return self._gateway.route(self.options.group)
        try:
            group = user.decode() if self.options.group_login else ""
        except UnicodeDecodeError:
            group = ""  # no agent can join it
        verdict = credentials.check_user(group, password, address) if group else None
        if verdict:
            return self._gateway.route(group)
        if verdict is None:
            # Guesses of the login's password count, even if they may be for a group of that name.
            if group and not (login is not None and group == login.name):
                return NO_AGENT
            credentials.throttle.failed(address)
        return None


class Gateway(ServerService):
    """The service of anyproxy-gateway: `start()` listens, `close()` ends everything.

    Raises UsageError if a certificate is unusable.
    """

    def __init__(self, options: GatewayOptions) -> None:
        resolver = Resolver()
        super().__init__(options, resolver, options.tls)
        self._options = options
        self._resolver = resolver
        self.idle_time = options.timeout
        self.udp_idle_time = options.udp_timeout
        self.groups = Groups(self._balance)
        self.credentials = Credentials(options.credentials, self._group_options, self.groups)
        self._routes: dict[str, Route] = {}
        self.ports = Ports(
            Means(
                self._open_forwarded,
                self._group_options,
                self.open_tunnels,
                self.counters,
                self.udp_idle_time,
            )
        )
        self._agents = AgentReader(
            self.groups,
            self.ports,
            login=options.login,
            admit=self.credentials.admit_agent,
            throttle=self.credentials.throttle,
        )
        self.proxies = [
            Proxy(name, proxy, self)
            for name, proxy in (("HTTP", options.http), ("SOCKS5", options.socks5))
            if proxy is not None
        ]
        extra: tuple[TlsFiles, ...] = tuple(
            proxy.tls for proxy in self.proxies if proxy.tls is not None
        )
        self.certificates = (*self.certificates, *extra)

    def _reader(self) -> HeadReader[str, SmuxSession]:
        return self._agents

    def _description(self) -> str:
        proxies = "".join(
            f", {proxy.name} proxy on {', '.join(proxy.addresses)}" for proxy in self.proxies
        )
        return f"agents{'' if self._tls is not None else ' without TLS'}{proxies}"

    def _group_options(self, name: str) -> GroupOptions:
        return self._options.groups.get(name, self._options.default_group)

    def _balance(self, name: str) -> Balance:
        return BALANCES[self._group_options(name).balance]

    async def start(self) -> None:
        """Listen. Raises StartError."""
        await self.serve(self._frontend.accept)
        try:
            for proxy in self.proxies:
                await proxy.start(self._resolver)
        except BaseException:
            self.cleanup()
            raise
        if self._tls is not None:
            self._tls.follow()

    def cleanup(self) -> None:
        super().cleanup()
        for proxy in self.proxies:
            proxy.cleanup()
        self.ports.cleanup()

    async def drain(self) -> None:
        for proxy in self.proxies:
            proxy.port.drain()
        self._agents.drain()
        await super().drain()

    async def close(self) -> None:
        self.cleanup()
        for proxy in self.proxies:
            proxy.port.close()
        self.ports.close()
        await self._agents.close()
        self.credentials.close()
        await super().close()

    def metrics_page(self) -> str:
        return super().metrics_page() + self.ports.lines()

    # Users.

    def route(self, group: str) -> Route:
        """Where connections of users of a group go."""
        route = self._routes.get(group)
        if route is None:
            if len(self._routes) >= MAX_ROUTES:
                self._routes.clear()
            route = Route(partial(self._open, group), partial(self._open_packets, group))
            self._routes[group] = route
        return route

    async def _open(
        self, group: str, near: StreamTransport, host: str, port: int
    ) -> StreamTransport:
        stream = await self.groups.open(group, Head(TCP, host, port, _user(near)))
        self.counters.streams += 1
        return stream

    async def _open_forwarded(
        self, group: str, head: Head, agents: Iterable[Agent]
    ) -> StreamTransport:
        stream = await self.groups.open(group, head, agents)
        self.counters.streams += 1
        return stream

    async def _open_packets(self, group: str, association: Association) -> UotChannel:
        stream = await self.groups.open(group, Head(UDP, "0.0.0.0", 0))
        self.counters.streams += 1
        return UotChannel(stream, association, self.counters)


def _user(near: StreamTransport) -> tuple[str, int] | None:
    """The user's address."""
    peer = near.get_extra_info("peername")
    return (peer[0].partition("%")[0], peer[1]) if isinstance(peer, tuple) else None
