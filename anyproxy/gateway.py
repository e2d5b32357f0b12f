"""anyproxy-gateway: agents join it, and users reach what is behind them through its proxies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NoReturn

from anyproxy.credentials import Credentials
from anyproxy.figures import BLOCKED, PASSWORD, GatewayFigures
from anyproxy.forwarded import Means
from anyproxy.joining import AgentReader
from anyproxy.options import GatewayOptions, GroupOptions, ProxyOptions
from anyproxy.ports import Ports
from anyproxy.rates import GroupRates
from anyproxy.web import Web
from mtt.address import peer_name
from mtt.errors import DestinationError
from mtt.inbound.front import HeadReader
from mtt.layers.base import StreamProtocol, StreamTransport
from mtt.layers.mux import MuxSession
from mtt.layers.parked import Parked, hand_over
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

# UDP associations of a proxy, each with a socket for the user's connection and one for datagrams.
MAX_ASSOCIATIONS = 4096
# Routes to keep; agents may make new groups without end.
MAX_ROUTES = 1000


class Proxy:
    """One proxy port of the gateway: its listener, its TLS, its users."""

    def __init__(
        self, name: str, options: ProxyOptions, gateway: Gateway, tls: TlsFiles | None
    ) -> None:
        self.name = name
        self._gateway = gateway
        self._listener: Listener | None = None
        self.port = ProxyPort(
            None,
            gateway.open_tunnels,
            idle_time=gateway.idle_time,
            udp_idle_time=gateway.udp_idle_time,
            max_associations=MAX_ASSOCIATIONS,
        )
        self.use_options(options, tls)

    def use_options(self, options: ProxyOptions, tls: TlsFiles | None) -> None:
        """Serve new connections by these options, at the present address."""
        self.options = options
        self.tls = tls
        has_login = options.group_login or options.login is not None
        self.port.route = None if has_login else self._gateway.route(options.group)
        self.port.login = self._login if has_login else None

    @property
    def addresses(self) -> list[str]:
        return self._listener.addresses if self._listener is not None else []

    async def listen(self, resolver: Resolver) -> None:
        """Listen. Raises StartError."""
        self.serve(await bind(self.options.bind, "", resolver=resolver))

    def serve(self, listener: Listener) -> None:
        """Accept connections of this listener instead of the present one."""
        self.cleanup()
        self._listener = listener
        listener.serve(self._gateway.open_tunnels.admission.guard(self._accept))

    def cleanup(self) -> None:
        if self._listener is not None:
            self._listener.close()

    def _accept(self) -> StreamProtocol:
        proxies = self._gateway.options.trusted_proxies
        if proxies is None:
            return self._accept_user()
        from mtt.inbound.proxy_header import ProxyHeaderReader

        return ProxyHeaderReader(
            proxies,
            self._accept_user,
            is_required=False,
            on_wait=self.port.handshake_begun,
            on_failure=lambda transport, error: self.port.report(peer_name(transport), error),
            on_end=self.port.handshake_over,
            keeps_own=True,  # UDP associations listen there
        )

    def _accept_user(self) -> StreamProtocol:
        port = self.port
        if self.tls is None:
            return ProxyHandshake(port)

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
        self.port.report(peer_name(tls), error)

    def _login(self, near: StreamTransport, user: bytes, password: bytes) -> Route | None:
        peer = near.get_extra_info("peername")
        address = peer[0] if isinstance(peer, tuple) else ""
        login, credentials = self.options.login, self._gateway.credentials
        refused = self._gateway.figures.refused_logins
        if credentials.throttle.blocks(address):
            refused[BLOCKED] += 1
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
                return self._gateway.no_agent
            credentials.throttle.failed(address)
        refused[PASSWORD] += 1
        return None


class Gateway(ServerService):
    """The service of anyproxy-gateway: `start()` listens, `close()` ends everything.

    Attributes:
        figures: its counters.
        agents: how they join.
        no_agent: the upstream of users of a group without agents. Their password cannot be checked,
            and an agent may join at any moment.
        proxies: those that listen.
        web: the interface for pages; None without one.
        on_stream: called with each stream of a user and its head.
        former_proxies: those that a new configuration has removed.
        is_over: whether it has stopped listening.

    Raises UsageError if a certificate is unusable.
    """

    def __init__(self, options: GatewayOptions) -> None:
        self.resolver = Resolver()
        super().__init__(options, self.resolver, options.tls)
        self.options = options
        self.is_over = False
        self.web: Web | None = None
        self.on_stream: Callable[[StreamTransport, Head], object] | None = None
        self.idle_time = options.timeout
        self.udp_idle_time = options.udp_timeout
        self.groups = Groups(self._balance, self._max_streams)
        self._rates = GroupRates(self._rate, self.groups)
        self.credentials = Credentials(options.credentials, self.group_options, self.groups)
        self.figures = GatewayFigures(per_group=options.metrics_per_group)
        self.no_agent = Route(self._no_agent, self._no_agent)
        self._routes: dict[str, Route] = {}
        self.ports = Ports(
            Means(
                self._open_stream,
                self.group_options,
                self.open_tunnels,
                self.counters,
                self.udp_idle_time,
            )
        )
        self.agents = AgentReader(
            self.groups,
            self.ports,
            login=options.login,
            admit=self.credentials.admit_agent,
            throttle=self.credentials.throttle,
        )
        self.proxies = [
            Proxy(name, proxy, self, server_tls(proxy.tls) if proxy.tls is not None else None)
            for name, proxy in options.proxies.items()
        ]
        self.former_proxies: list[Proxy] = []
        self.certificates = self.used_certificates()

    # Options that change while it runs, see `gateway_reload`.

    def use_options(self, options: GatewayOptions) -> None:
        """Use these options from now on, except what is made from them at the start."""
        self.options = options
        self.figures.per_group = options.metrics_per_group
        self.agents.login = options.login
        self._frontend.proxies = options.trusted_proxies
        if self.web is not None:
            self.web.proxies = options.trusted_proxies
        self._rates.refresh()

    def used_certificates(self) -> tuple[TlsFiles, ...]:
        """The certificates for new connections."""
        found = (self._tls, *(proxy.tls for proxy in self.proxies))
        return tuple(tls for tls in found if tls is not None)

    def _reader(self) -> HeadReader[str, MuxSession[Any]]:
        return self.agents

    def _description(self) -> str:
        proxies = "".join(
            f", {proxy.name} proxy on {', '.join(proxy.addresses)}" for proxy in self.proxies
        )
        return f"agents{'' if self._tls is not None else ' without TLS'}{proxies}"

    def group_options(self, name: str) -> GroupOptions:
        """The options of a group."""
        return self.options.groups.get(name, self.options.default_group)

    def _max_streams(self, name: str) -> int:
        return self.group_options(name).max_streams

    def _rate(self, name: str) -> int:
        return self.group_options(name).rate

    def _balance(self, name: str) -> Balance:
        return BALANCES[self.group_options(name).balance]

    async def start(self) -> None:
        """Listen. Raises StartError."""
        await self.serve(self._frontend.accept)
        try:
            for proxy in self.proxies:
                await proxy.listen(self.resolver)
            if self.web is not None:
                await self.web.serve(self.resolver)
        except BaseException:
            self.cleanup()
            raise
        self.follow()

    def cleanup(self) -> None:
        self.is_over = True
        super().cleanup()
        for proxy in self.proxies:
            proxy.cleanup()
        self.ports.cleanup()
        if self.web is not None:
            self.web.cleanup()

    async def drain(self) -> None:
        for proxy in self.proxies:
            proxy.port.drain()
        self.agents.drain()
        await super().drain()

    async def close(self) -> None:
        self.cleanup()
        if self.configuration is not None:
            await self.configuration.close()
        for proxy in (*self.proxies, *self.former_proxies):
            proxy.port.close()
        self.ports.close()
        if self.web is not None:
            await self.web.close()
        await self.agents.close()
        self.credentials.close()
        await super().close()

    def metrics_page(self) -> str:
        figures = self.figures.lines(self.groups, self.agents.refused)
        return super().metrics_page() + figures + self.ports.lines()

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

    async def _no_agent(self, *_: object) -> NoReturn:
        self.figures.dialled("", Outcome.NO_AGENT, 0.0)
        raise DestinationError(Outcome.NO_AGENT)

    async def _open(
        self, group: str, near: StreamTransport, host: str, port: int
    ) -> StreamTransport:
        return await self._open_stream(group, Head(TCP, host, port, _user(near)))

    async def _open_stream(
        self, group: str, head: Head, agents: Iterable[Agent] | None = None
    ) -> StreamTransport:
        now = asyncio.get_running_loop().time
        began = now()
        try:
            stream = await self.groups.open(group, head, agents)
        except DestinationError as error:
            self.figures.dialled(group, error.outcome, now() - began)
            raise
        self.counters.streams += 1
        self.figures.dialled(group, Outcome.SUCCEEDED, now() - began)
        stream = self._rates.limited(group, self.figures.counted(group, stream))
        if self.on_stream is not None:
            self.on_stream(stream, head)
        return stream

    async def _open_packets(self, group: str, association: Association) -> UotChannel:
        stream = await self._open_stream(group, Head(UDP, "0.0.0.0", 0))
        return UotChannel(stream, association, self.counters)


def _user(near: StreamTransport) -> tuple[str, int] | None:
    """The user's address."""
    peer = near.get_extra_info("peername")
    return (peer[0].partition("%")[0], peer[1]) if isinstance(peer, tuple) else None
