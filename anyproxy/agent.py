"""anyproxy-client: the agent, which connects to gateways and serves their streams."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

from anyproxy.asking import ask_to_join
from anyproxy.control import AgentControl, PortReports
from anyproxy.figures import agent_lines
from anyproxy.gateway_names import GatewayNames
from anyproxy.go_ports import log_answer, ports_for_go
from anyproxy.link import Link, LinkSession
from anyproxy.options import AgentOptions
from anyproxy.targets import Targets
from anyproxy.web import Web
from mtt.address import Endpoint, is_ip
from mtt.errors import MttError, NetworkError
from mtt.layers.anyproxy import GoSession, Tell
from mtt.layers.base import StreamProtocol, StreamTransport
from mtt.layers.mux import MuxSession
from mtt.layers.smux import SmuxSession
from mtt.layers.websocket import WebSocketLayer
from mtt.log import logger
from mtt.net.dial import Dialer
from mtt.net.resolve import Resolver
from mtt.options.proxy import proxy_to
from mtt.outbound.agent import MAX_STREAMS
from mtt.outbound.connector import CONNECT_TIME, Connector
from mtt.outbound.proxy_dialer import ProxyDialer
from mtt.trust.tls_options import ClientTls
from mtt.tunnels.service import Service
from mtt.wire.agent import Head
from mtt.wire.anyproxy import agent_id

# Seconds between looks at whether a session that is left has any streams.
IDLE_TICK = 1.0
# A gateway, one of its addresses (see `gateway_names`), and the number of a session with it.
_Place = tuple[Endpoint, str, int]


class Agent(Service):
    """The service of anyproxy-client. It does not listen, except for metrics.

    Raises UsageError if the TLS options are unusable.
    """

    def __init__(self, options: AgentOptions) -> None:
        resolver = Resolver()
        super().__init__(
            options,
            resolver,
            sessions=lambda: self.open_sessions,
            pending=lambda: sum(each.connecting for each in self.connectors.values()),
        )
        self.options = options
        self._resolver = resolver
        self.web: Web | None = None
        self.open_sessions: dict[MuxSession[Any], None] = {}
        self._controls: dict[MuxSession[Any], AgentControl] = {}
        self._port_reports = PortReports()
        self.targets = Targets(
            options.rules,
            options.protocols,
            resolver,
            self.open_tunnels,
            udp_timeout=options.udp_timeout,
        )
        self._dialer = Dialer(resolver, timeout=CONNECT_TIME)
        self.connectors: dict[Endpoint, Connector] = {}
        self.use_connectors(self.make_connectors(options, options.gateways))
        self.names = GatewayNames(resolver, self._named_gateways, self.relink)
        self._links = {place: self._link(place) for place in self._places() if _is_ip(place[0])}
        self._starting: asyncio.Task[None] | None = None
        self._former: dict[_Place, LinkSession] = {}  # sessions until their successor is there
        self._relinking = asyncio.Lock()

    @property
    def addresses(self) -> list[str]:
        return []

    @property
    def links(self) -> list[Link]:
        """One for each session that there should be."""
        return list(self._links.values())

    async def start(self) -> None:
        """Start connecting. Raises StartError if the metrics address is unusable."""
        if await self.endpoint.start():
            self.lag.start()
        if self.web is not None:
            try:
                await self.web.serve(self._resolver)
            except BaseException:
                self.cleanup()
                raise
        for connector in self.connectors.values():
            connector.start()
        for link in self.links:
            link.start()
        self._starting = asyncio.get_running_loop().create_task(self._follow_names())
        if self.configuration is not None:
            self.configuration.follow()

    async def _follow_names(self) -> None:
        """Connect to the gateways that are names, and look them up again from time to time."""
        await self.names.look_up()
        await self.relink()
        self.names.follow()

    def _named_gateways(self) -> list[Endpoint]:
        # A proxy looks names up itself.
        return [
            gateway for gateway in self.connectors
            if not _is_ip(gateway) and proxy_to(gateway, self.options.proxy) is None
        ]  # fmt: skip

    def metrics_page(self) -> str:
        sessions = {str(gateway): 0 for gateway in self.connectors}
        for (gateway, _, _), link in self._links.items():
            sessions[str(gateway)] += link.session is not None
        targets = self.targets
        return super().metrics_page() + agent_lines(sessions, targets.outcomes, targets.denied)

    def announce(self) -> None:
        options = self.options
        ways = (proxy_to(gateway, options.proxy) for gateway in options.gateways)
        proxies = ", ".join(dict.fromkeys(str(proxy) for proxy in ways if proxy is not None))
        logger.info(
            "agent %s of group %s, for %s%s", options.id, options.group,
            ", ".join(str(gateway) for gateway in options.gateways),
            f", through the proxy {proxies}" if proxies else "",
        )  # fmt: skip
        for line in options.rules.warnings:
            logger.warning("%s", line)

    async def drain(self) -> None:
        """Leave: tell the gateways, and wait until the open streams have ended."""
        await self._stop_following()
        self.targets.is_draining = True
        for link in self.links:
            await link.stop()
        for control in self._controls.values():
            control.drain()
        await super().drain()

    def cleanup(self) -> None:
        super().cleanup()
        if self.web is not None:
            self.web.cleanup()

    async def close(self) -> None:
        self.cleanup()
        if self.web is not None:
            await self.web.close()
        await self._stop_following()
        for link in self.links:
            await link.stop()
        for session in list(self.open_sessions):
            session.close()
        await super().close()

    async def _stop_following(self) -> None:
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait([self._starting])
        await self.names.stop()
        if self.configuration is not None:
            await self.configuration.close()

    # Options that change while it runs, see `agent_reload`.

    def use_options(self, options: AgentOptions) -> None:
        """Use these options from now on, except for gateways."""
        self.options = options
        self.targets.rules = options.rules
        self.targets.protocols = options.protocols
        self.targets.udp_timeout = options.udp_timeout

    def announce_ports(self) -> None:
        """Have the gateways forward the ports of the options."""
        for control in self._controls.values():
            control.announce(self.options.open_ports)

    def make_connectors(
        self, options: AgentOptions, gateways: Iterable[Endpoint]
    ) -> dict[Endpoint, Connector]:
        """Connectors of these gateways. Raises UsageError if the TLS options are unusable."""
        return {
            gateway: Connector(
                gateway, self._dialer_to(gateway, options), self.counters,
                _tls(options.tls, gateway),
            )
            for gateway in gateways
        }  # fmt: skip

    def _dialer_to(self, gateway: Endpoint, options: AgentOptions) -> Dialer | ProxyDialer:
        proxy = proxy_to(gateway, options.proxy)
        return self._dialer if proxy is None else ProxyDialer(self._dialer, proxy)

    def use_connectors(self, connectors: dict[Endpoint, Connector]) -> None:
        """Reach the gateways by these from now on."""
        self.connectors = connectors
        self.certificates = tuple(
            files for connector in connectors.values() for files in connector.files
        )

    async def relink(self, *, renew: bool = False) -> None:
        """Have the links that the options ask for; `renew` replaces all.

        A session whose link has gone ends with its last stream, if there is a successor after that
        has begun.
        """
        async with self._relinking:  # by changed names and by a changed configuration
            wanted = self._places()
            for place, link in list(self._links.items()):
                if renew or place not in wanted:
                    del self._links[place]
                    await link.stop()
                    if link.session is not None:
                        self._leave(self._former.pop(place, None))
                        self._former[place] = link.session
            for place in list(self._former):
                if place not in wanted:
                    self._leave(self._former.pop(place))
            for place in wanted:
                if place not in self._links:
                    self._links[place] = link = self._link(place)
                    link.start()

    def _places(self) -> list[_Place]:
        return [
            (gateway, address, replica)
            for gateway in self.connectors
            for address in self.names.addresses(gateway)
            for replica in range(self.options.replicas)
        ]

    def _link(self, place: _Place) -> Link:
        gateway, address, _ = place
        proxy = proxy_to(gateway, self.options.proxy)
        hop = proxy.address if proxy is not None else None
        at = gateway._replace(hosts=(address,)) if address else gateway
        return Link(at, partial(self._connect_at, place), hop)

    async def _connect_at(self, place: _Place, on_end: Callable[[], object]) -> LinkSession:
        gateway, address, replica = place
        connector = self.connectors.get(gateway)
        if connector is None:
            raise NetworkError(f"{gateway} has been removed")
        # Two addresses may lead to one gateway, where sessions of one name replace each other.
        addresses = self.names.addresses(gateway)
        if address in addresses:
            replica += self.options.replicas * addresses.index(address)
        session = await self._connect(connector, address, replica, on_end)
        self._leave(self._former.pop(place, None))
        return session

    def _leave(self, session: Any) -> None:
        """Take no new streams of a session, and end it with the last one."""
        if session is None or session.lost:
            return
        control = self._controls.get(session)
        if control is not None:
            control.drain()
        self._close_idle(session)

    def _close_idle(self, session: LinkSession) -> None:
        if session.open_streams:
            asyncio.get_running_loop().call_later(IDLE_TICK, self._close_idle, session)
        else:
            session.close()

    # Sessions.

    async def _connect(
        self,
        connector: Connector,
        address: str,
        replica: int,
        on_end: Callable[[], object],
    ) -> LinkSession:
        """Make a session with a gateway, at one of its addresses."""
        transport = await connector.connect(address)
        client_id = agent_id(self.options.id, replica, os.urandom(12))
        try:
            protocol = await ask_to_join(transport, connector.server, client_id, self.options)
        except MttError as error:
            self.counters.failed(error)
            raise
        if protocol is None:
            return self._begin_go(transport, client_id, on_end)
        return self._begin(transport, str(connector.server), on_end)

    def _begin(
        self, transport: StreamTransport, gateway: str, on_end: Callable[[], object]
    ) -> SmuxSession:
        session = SmuxSession(
            accept=self._accept,
            first_id=3,
            max_streams=MAX_STREAMS,
            on_lost=partial(self._lost, on_end),
        )
        layer = WebSocketLayer(session, client=True, half_close=True)
        self._add(session)
        layer.start(transport)
        if not session.lost:
            control = AgentControl(session, partial(self._port_reports.report, gateway))
            session.open_stream(control)
            control.announce(self.options.open_ports)
            self._controls[session] = control
        return session

    def _begin_go(
        self, transport: StreamTransport, client_id: str, on_end: Callable[[], object]
    ) -> GoSession:
        """Begin a session with a gateway that is the Go program."""
        ports = ports_for_go(self.options.open_ports)
        session = GoSession(
            serve=self._serve_go,
            max_streams=MAX_STREAMS,
            on_ports_answer=partial(log_answer, ports) if ports else None,
            on_lost=partial(self._lost, on_end),
        )
        layer = session.message_layer(client=True, random_mask=self.options.tls is None)
        self._add(session)
        layer.start(transport)
        if ports and not session.lost:
            session.ask_ports(client_id, ports)
        return session

    def _add(self, session: MuxSession[Any]) -> None:
        self.counters.sessions += 1
        self.open_sessions[session] = None

    def _lost(
        self, on_end: Callable[[], object], session: MuxSession[Any], error: Exception | None
    ) -> None:
        self.open_sessions.pop(session, None)
        self._controls.pop(session, None)
        self.counters.session_over(error)
        on_end()

    def _serve_go(self, stream: StreamTransport, head: Head, tell: Tell) -> None:
        self.counters.streams += 1
        self.targets.serve(stream, head, tell, is_go=True)

    def _accept(self) -> StreamProtocol:
        self.counters.streams += 1
        return self.targets.accept()


def _tls(tls: ClientTls | None, gateway: Endpoint) -> ClientTls | None:
    """The TLS options for one gateway: without a server name they get the gateway's."""
    if tls is None or tls.server_name:
        return tls
    return replace(tls, server_name=gateway.host.partition("%")[0])


def _is_ip(gateway: Endpoint) -> bool:
    return is_ip(gateway.host)
