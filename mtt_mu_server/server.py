"""The multi-user server: the tunnels of many users on one port, and the operator's controller."""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from mtt.address import parse_endpoint, peer_name, user_name
from mtt.errors import NetworkError
from mtt.inbound.websocket_reader import WebSocketReader
from mtt.layers.base import StreamTransport
from mtt.modes import describe_mode
from mtt.net.resolve import Resolver, use_threads
from mtt.tunnels.rate_limit import RateLimiter, TokenSource
from mtt.udp.server import DatagramServer
from mtt.wire.http1 import Reply, Request
from mtt.wire.servemux import NOT_FOUND
from mtt_mu_server import metrics
from mtt_mu_server.management import Management
from mtt_mu_server.options import MultiUserOptions
from mtt_mu_server.replica import UserReplica
from mtt_mu_server.user import Tunnel, User, fingerprint
from mtt_mu_server.users import Users

if TYPE_CHECKING:
    from mtt_mu_server.hub import MultiUserHub

# Carries an admitted stream of a user.
_Carry = Callable[[StreamTransport, User, Tunnel], Awaitable[None]]


class MultiUserServer(DatagramServer):
    """mtt-mu-server: `start()` listens, `close()` ends everything.

    Raises UsageError if a certificate or the token is unusable.
    """

    shares_state = True

    def __init__(self, options: MultiUserOptions) -> None:
        super().__init__(
            replace(options, metrics=None, metrics_unix=""),  # see Management
            Resolver(), options.tls,
            on_session=lambda user, session: self._users.session_changed(user, session),
        )  # fmt: skip
        self._options = options
        self._primary = Users()
        self._users: Users | UserReplica = self._primary
        self._replica: UserReplica | None = None  # only in a worker
        self._events = metrics.Events()
        self._management: Management | None = Management(
            options, self._primary, self._events, self.metrics_page
        )
        self._load_users: Callable[[], Awaitable[None]] = self._management.load
        if self._management.tls is not None:
            self.certificates += (self._management.tls,)

    def _reader(self) -> WebSocketReader[User]:
        return WebSocketReader(
            self._serve,
            self._route,
            mux=self._options.mux,
            v2ray=self._options.v2ray,
            datagrams=self._serve_datagrams if self._options.udp_time else None,
            refused=self._refused,
            refusal=NOT_FOUND,  # as for unknown paths; otherwise it would reveal existing ones
        )

    @property
    def controller_addresses(self) -> list[str]:
        """The addresses of the controller, with the actual port if port 0 was asked for."""
        return self._management.addresses if self._management is not None else []

    @property
    def metrics_addresses(self) -> list[str]:
        served = self._management.metrics_server if self._management is not None else None
        return served.addresses if served is not None else []

    async def start(self) -> None:
        """Load the users and listen. Raises StartError if that fails."""
        use_threads()
        management = self._management
        try:
            await self._load_users()
            await self.serve(self._frontend.accept)
            if management is not None:
                await management.start(self._resolver)
        except BaseException:
            self.cleanup()
            if management is not None:
                await management.close()
            raise
        self.lag.start()
        self.follow()

    def _description(self) -> str:
        options = self._options
        mode = describe_mode(options.mode, tls=options.tls is not None, udp=options.udp_time > 0)
        management = self._management
        # With several workers, the hub logs what it manages.
        managed = management is not None and management.addresses
        return f"{mode}, for {management.describe()}" if management and managed else mode

    def hub(self) -> MultiUserHub | None:
        from mtt_mu_server.hub import MultiUserHub

        assert self._management is not None
        return MultiUserHub(self._management, self._primary, self._events)

    def join(self, hub: socket.socket | None, is_heavy: Callable[[int], bool]) -> None:
        super().join(None, is_heavy)  # metrics go to the hub with the rest
        if hub is None:  # this process becomes the hub
            return
        self._users = self._replica = UserReplica(self.metrics_page, self._events)
        self._load_users = partial(self._replica.connect, hub)
        self._management = None
        self.certificates = (self._tls,) if self._tls is not None else ()
        for descriptor in self._options.inherited.control:
            os.close(descriptor)

    def cleanup(self) -> None:
        super().cleanup()
        if self._management is not None:
            self._management.cleanup()

    async def close(self) -> None:
        self.cleanup()
        if self._management is not None:
            await self._management.stop()
        await super().close()
        if self._replica is not None:
            await self._replica.close()
        if self._management is not None:
            await self._management.close()

    # Users' connections.

    def _route(self, request: Request) -> User | Reply:
        """The user of a request; unknown, expired and removed paths get the same answer."""
        user = self._users.find(request.path)
        if user is None:
            self._events.unknown += 1
            return NOT_FOUND
        if not self._users.has_room(user):
            self._events.full += 1
            return NOT_FOUND
        return user

    def _refused(self, transport: StreamTransport, request: Request) -> None:
        if self._users.is_watched and "websocket" in request.tokens("upgrade"):
            user = self._frontend.named_user(transport, request)
            peer = user_name(*user) if user is not None else peer_name(transport)
            self._users.refused(request.path, peer)

    def _serve(self, stream: StreamTransport, user: User) -> None:
        self._begin(stream, user, self._carry)

    def _serve_datagrams(self, stream: StreamTransport, user: User) -> None:
        self._begin(stream, user, self._carry_datagrams)

    def _begin(self, stream: StreamTransport, user: User, carry: _Carry) -> None:
        # The user may have changed since a multiplexed connection was opened.
        known = self._users.find(user.path)
        room = self.open_tunnels.admission.has_room()
        tunnel = self._users.enter(known, stream) if known is not None and room else None
        if known is None or tunnel is None:
            self._events.full += known is not None and room
            if room and self._users.is_watched:
                self._users.refused(user.path, peer_name(stream))
            stream.abort()
            return
        self.open_tunnels.spawn(stream, self._admitted(stream, known, tunnel, carry))

    async def _admitted(
        self, stream: StreamTransport, user: User, tunnel: Tunnel, carry: _Carry
    ) -> None:
        try:
            if await self._users.admitted(tunnel):
                await carry(stream, user, tunnel)
            else:
                self._events.full += 1
                stream.abort()
        finally:
            if tunnel.relay is None:
                self._users.leave(tunnel)

    async def _carry(self, stream: StreamTransport, user: User, tunnel: Tunnel) -> None:
        try:
            far = await self.connect(parse_endpoint("dst", user.dst), stream)
        except NetworkError as error:
            self._events.dial_failures += 1
            self.counters.dial_failures += 1
            tunnel.reason = tunnel.reason or str(error)
            raise NetworkError(f"user {fingerprint(user.path)}: {error}") from None
        if tunnel.cut:
            far.abort()
            return
        near = stream
        buckets = self._users.buckets(user)
        if buckets:
            limiters = [RateLimiter(bucket) for bucket in buckets]
            for limiter, end in zip(limiters, (near, far), strict=True):
                limiter.start(end)
            near, far = limiters
        tunnel.relay = self.open_tunnels.relay(
            near, far, on_done=lambda _: self._users.leave(tunnel)
        )

    async def _carry_datagrams(self, stream: StreamTransport, user: User, tunnel: Tunnel) -> None:
        if tunnel.cut:
            return
        assert self._udp is not None
        down: TokenSource | None = None
        buckets = self._users.buckets(user)
        if buckets:
            up, down = buckets
            limiter = RateLimiter(up)
            limiter.start(stream)
            stream = limiter
        tunnel.relay = self._udp.carry(
            stream,
            parse_endpoint("dst", user.dst),
            down=down,
            on_done=lambda _: self._users.leave(tunnel),
        )
