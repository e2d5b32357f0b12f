"""The client: accepts applications and tunnels their connections to the server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import cached_property, partial
from socket import socket
from typing import TYPE_CHECKING, Any

from mtt.address import peer_name
from mtt.errors import StartError
from mtt.layers.base import Data, StreamTransport
from mtt.layers.parked import Parked
from mtt.log import logger
from mtt.modes import MODES, describe_mode
from mtt.net.dial import Dialer
from mtt.net.resolve import Resolver
from mtt.options.tunnel import ClientOptions
from mtt.outbound.connector import CONNECT_TIME, Connector
from mtt.outbound.upstream import Upstream
from mtt.tunnels.open_tunnels import CLIENT_LOGGED_ERRORS
from mtt.tunnels.relay import Relay
from mtt.tunnels.service import Service

if TYPE_CHECKING:
    from mtt.outbound.proxy_dialer import ProxyDialer
    from mtt.udp.port import UdpPort

# As a plugin: seconds to wait for an application's first byte before dialling the server anyway.
# Shadowsocks always sends first. shadowsocks-rust checks the plugin by connecting and closing,
# which must not reach the server.
FIRST_BYTE_TIME = 0.3

Protect = Callable[[socket], Awaitable[None]]


class Client(Service):
    """mtt-client: `start()` listens, `close()` ends everything.

    `protect`: awaited with every outgoing socket before it connects (Android VPN). Raises
    UsageError when the TLS options are unusable.
    """

    def __init__(self, options: ClientOptions, protect: Protect | None = None) -> None:
        resolver = Resolver(options.fallback_dns, protect)
        super().__init__(
            options,
            resolver,
            logged_errors=CLIENT_LOGGED_ERRORS,
            sessions=lambda: self._upstream.sessions,
            pending=lambda: self._connector.connecting,
        )
        self._options = options
        self.waits_for_first_byte = options.plugin or options.early_data > 0
        mode = MODES[options.mode]
        direct = Dialer(
            resolver, timeout=CONNECT_TIME, fast_open=options.fast_open, protect=protect
        )
        dialer: Dialer | ProxyDialer = direct
        if options.proxy is not None:
            from mtt.outbound.proxy_dialer import ProxyDialer

            dialer = ProxyDialer(direct, options.proxy)
        self._connector = Connector(
            options.server,
            dialer,
            self.counters,
            replace(options.tls, alpn=mode.client_alpn),
            half_close=mode.half_close,
            on_change=lambda: self._upstream.renew(),
        )
        self.certificates = self._connector.files
        self._udp: UdpPort | None = None
        self.waiting: set[StreamTransport] = set()  # before the first byte
        self.closed = False

    @cached_property
    def _upstream(self) -> Upstream:
        options = self._options
        mode = MODES[options.mode]
        self._connector.finish = mode.upgrade(options)
        return mode.upstream(options, self._connector, self.counters)

    def load(self) -> None:
        _ = self._upstream  # creates it, with its imports

    async def start(self) -> None:
        """Start listening. Raises StartError."""
        await self.serve(lambda: _Application(self))
        try:
            self._serve_udp()
        except BaseException:
            self.cleanup()
            raise
        self._connector.start()
        self._upstream.start()

    def _serve_udp(self) -> None:
        """Listen for datagrams, if that is wanted. Raises StartError."""
        assert self._listener is not None
        options = self._options
        if not options.udp_time:
            self._listener.close_udp()  # of a predecessor
            return
        sockets = self._listener.bind_udp(shared=self._yields is not None)
        if not sockets:
            raise StartError("-udp: there is no UDP beside a unix socket; listen on an IP address")
        if self._udp is None:
            from mtt.udp.port import UdpPort

            mode = MODES[options.mode]
            self._udp = UdpPort(
                str(options.server),
                partial(mode.open_datagrams, options, self._connector, self._upstream),
                self.open_tunnels,
                is_agreed=mode.agrees_to_datagrams,
                idle_time=options.udp_time,
            )
        self._udp.start(sockets)

    async def listen(self) -> None:
        await super().listen()
        if self._guarded is not None:
            self._serve_udp()

    def stop_listening(self) -> None:
        self._stop_udp()
        super().stop_listening()

    def hand_over(self, successor: Service) -> None:
        self._stop_udp()
        super().hand_over(successor)

    def _stop_udp(self) -> None:
        if self._udp is not None:
            self._udp.stop()

    def announce(self) -> None:
        options = self._options
        logger.info(
            "listening on %s, %s to %s as %s%s%s",
            ", ".join(self.addresses),
            describe_mode(options.mode, udp=options.udp_time > 0),
            options.server,
            options.tls.server_name,
            " (NOT VERIFIED)" if options.tls.skip_verify else "",
            f", through the proxy {options.proxy}" if options.proxy else "",
        )

    def cleanup(self) -> None:
        self._stop_udp()
        super().cleanup()

    async def close(self) -> None:
        self.cleanup()
        self.closed = True
        for transport in list(self.waiting):
            transport.abort()
        if self._udp is not None:
            await self._udp.close()
        await self._upstream.close()
        await super().close()

    async def drain(self) -> None:
        self._upstream.stop()
        if self._udp is not None:
            await self._udp.close()
        await super().drain()

    def metrics_page(self) -> str:
        page = super().metrics_page() + self._upstream.metrics()
        return page if self._udp is None else page + self._udp.metrics()

    def application_ready(self, transport: StreamTransport) -> None:
        """Open a tunnel for an application."""
        stream = self._upstream.open_at_once()
        if stream is not None:
            self._relay(transport, stream)
        elif self._upstream.early_data:
            self.open_tunnels.spawn(transport, self._carry_early(transport))
        else:
            self.open_tunnels.spawn(transport, self._carry(transport))

    async def _carry(self, application: StreamTransport) -> None:
        self._relay(application, await self._upstream.open())

    async def _carry_early(self, application: StreamTransport) -> None:
        """Send the application's first data with the request for its stream."""
        parked = application.get_protocol()
        assert isinstance(parked, Parked)
        data = parked.early[: self._upstream.early_data]
        stream = await self._upstream.open_with(data)
        parked.early = parked.early[len(data) :]
        self._relay(application, stream, sent=len(data))

    def _relay(
        self, application: StreamTransport, stream: StreamTransport, *, sent: int = 0
    ) -> None:
        """Relay; `sent` bytes of the application are on their way already."""
        self.counters.streams += self._upstream.is_multiplexed
        relay = self.open_tunnels.relay(application, stream, on_done=self._tunnel_over)
        relay.count_sent(sent)

    def _tunnel_over(self, relay: Relay) -> None:
        self._upstream.ended(relay.error)


class _Application(Parked):
    """Protocol of an application's connection until its tunnel is open."""

    __slots__ = ("_client", "_timer")

    def __init__(self, client: Client) -> None:
        super().__init__()
        self._client = client
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        if self._client.closed:  # accepted just before the close
            transport.abort()
        elif self._client.waits_for_first_byte:
            self._client.waiting.add(transport)
            self._timer = asyncio.get_running_loop().call_later(FIRST_BYTE_TIME, self._start)
        else:
            # Before the first byte, because the destination may send first.
            self._start()

    def _start(self) -> None:
        assert self.transport is not None
        self._stop_waiting()
        self._client.application_ready(self.transport)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._client.waiting.discard(self.transport)

    def data_received(self, data: Data) -> None:
        super().data_received(data)
        if self._timer is not None:
            self._start()

    def eof_received(self) -> bool:
        if self._timer is None:
            return super().eof_received()
        assert self.transport is not None
        logger.debug("%s: closed without a byte", peer_name(self.transport))
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)
