"""The multi-user server: the tunnels of many users on one port, and the operator's controller."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor

from mtt.errors import NetworkError
from mtt.frontend import Frontend
from mtt.http.access import Access
from mtt.layers import linger
from mtt.layers.holding import Holding
from mtt.layers.smux import SmuxSession
from mtt.log import logger
from mtt.metrics import CONTENT_TYPE
from mtt.modes import alpn, mode_name
from mtt.net.address import parse_endpoint
from mtt.net.dial import Dialer
from mtt.net.listen import Listener, listen
from mtt.net.resolve import Resolver
from mtt.process.eventloop import LagMeter
from mtt.service import Service
from mtt.trust.reload import TlsFiles, server_tls
from mtt.wire.http1 import Reply, Request
from mtt.wire.servemux import NOT_FOUND
from mtt_mu_server import metrics
from mtt_mu_server.commands import Commands, in_slices
from mtt_mu_server.control import Controller
from mtt_mu_server.options import MultiUserOptions
from mtt_mu_server.records import User, fingerprint
from mtt_mu_server.store import Store, StoreError, open_store
from mtt_mu_server.throttle import Bucket, Throttle
from mtt_mu_server.token_file import read_token
from mtt_mu_server.users import Tunnel, Users

# Destinations are near; one that needs longer to accept is not there. The original waits as long
# as the system does, minutes.
DESTINATION_TIME = 10.0

# The system's resolver blocks a thread per name, for half a minute if the name's servers are dead.
# asyncio has as few as five threads, so five users with dead destinations would keep all others
# waiting. Threads that nobody needs are not started.
RESOLVER_THREADS = 64

# How often expired users are looked for, of those who have something open.
EXPIRY_INTERVAL = 1.0

# How often the counters are written to the database: what a crash may lose of them. Users are not
# concerned, they are written before a command is answered.
FLUSH_INTERVAL = 10.0

EXPIRED_REASON = "the user has expired"


class MultiUserServer(Service):
    """mtt-mu-server: `start()` listens, `close()` ends everything.

    Raises UsageError when a certificate or the token cannot be used.
    """

    def __init__(self, options: MultiUserOptions) -> None:
        super().__init__(timeout=options.timeout, max_conns=options.max_conns)
        self._options = options
        self._tls: TlsFiles | None = None
        if not options.disable_tls:
            self._tls = server_tls(
                cert=options.cert,
                key=options.key,
                cert_dir=options.cert_dir,
                name=options.name,
                client_ca=options.client_ca,
                tls_min=options.tls_min,
                alpn=alpn(wss=True),
            )
        self._users = Users()
        self._events = metrics.Events()
        self._store: Store | None = None
        self._commands = Commands(self._users, None)
        self._resolver = Resolver()
        self._dialer = Dialer(self._resolver, timeout=DESTINATION_TIME)
        self._frontend = Frontend[User](
            self._serve,
            counters=self.counters,
            context=self._tls.context if self._tls is not None else None,
            route=self._route,
            mux=options.mux,
            refusal=NOT_FOUND,  # as for unknown paths, or it would tell which ones exist
            fallback=self._visit if options.fallback is not None else None,
            on_session=lambda user, session: self._users.session_changed(user.path, session),
        )
        self._control_tls, self._access = _controller_access(options)
        self._tls_files = tuple(files for files in (self._tls, self._control_tls) if files)
        self._controller: Controller | None = None
        self._control_listener: Listener | None = None
        self._housekeeper: asyncio.Task[None] | None = None

    @property
    def controller_addresses(self) -> list[str]:
        """Where the controller listens, with the real port when port 0 was asked for."""
        return self._control_listener.addresses if self._control_listener is not None else []

    async def start(self) -> None:
        """Read the database and listen. Raises StartError when that is not possible."""
        options = self._options
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(RESOLVER_THREADS, "resolver"))
        try:
            if options.db:
                self._store, rows, counters = await open_store(options.db)
                self._users.load(rows, counters)
            self._commands = Commands(self._users, self._store)
            self._events.commands = self._commands.done
            self._controller = Controller(
                access=self._access,
                run=self._commands.run,
                metrics=self._metrics,
                context=self._control_tls.context if self._control_tls is not None else None,
            )
            self._listener = await listen(
                options.bind,
                options.bind_unix,
                self._admission.guard(self._frontend.accept),
                resolver=self._resolver,
                fast_open=options.fast_open,
                descriptors=options.handed.tunnel,
            )
            self._control_listener = await listen(
                options.controller,
                options.controller_unix,
                self._controller.accept,
                resolver=self._resolver,
                descriptors=options.handed.control,
                private=True,
            )
        except BaseException:
            self.cleanup()
            if self._store is not None:
                await self._store.close()
            raise
        self._lag = LagMeter()
        self._housekeeper = loop.create_task(self._keep_house())
        for files in self._tls_files:
            files.follow()
        tls = self._tls
        logger.info(
            "listening on %s, %s, for %d users, controller on %s%s%s",
            ", ".join(self.addresses),
            mode_name(wss=True, mux=options.mux, tls=tls is not None),
            len(self._users),
            ", ".join(self.controller_addresses),
            "" if options.db else " (no -db: users are forgotten at the end)",
            f"; {tls.description}" if tls is not None else "",
        )

    def cleanup(self) -> None:
        super().cleanup()
        if self._control_listener is not None:
            self._control_listener.close()

    async def close(self) -> None:
        self.cleanup()
        if self._housekeeper is not None:
            self._housekeeper.cancel()
            await asyncio.wait([self._housekeeper])
        if self._controller is not None:
            await self._controller.close()
        self._frontend.close()
        await super().close()
        if self._store is not None:
            await self._save_counters()
            store, self._store = self._store, None
            await store.close()

    def _count_connections(self) -> int:
        return self.tunnels + len(self._sessions())  # those may be idle, and cost something

    def _count_handshakes(self) -> int:
        return self._frontend.pending

    def _sessions(self) -> Collection[SmuxSession]:
        return self._frontend.sessions

    # Users' connections.

    def _route(self, request: Request) -> User | Reply:
        """The user of a request. Nobody learns why a path leads nowhere, nor that it did once."""
        user = self._users.find(request.path)
        if user is None:
            self._events.unknown += 1
            return NOT_FOUND
        if not self._users.has_room(user):
            self._events.full += 1
            return NOT_FOUND
        return user

    def _serve(self, stream: asyncio.Transport, user: User) -> None:
        # A multiplexed connection outlives what was said when it began.
        known = self._users.find(user.path)
        room = self._admission.has_room()
        tunnel = self._users.enter(known, stream) if known is not None and room else None
        if known is None or tunnel is None:
            self._events.full += known is not None and room
            stream.close()
            return
        self._spawn(stream, self._carry(stream, known, tunnel))

    async def _carry(self, stream: asyncio.Transport, user: User, tunnel: Tunnel) -> None:
        try:
            far = await self._dial(user)
            if tunnel.cut:
                linger.reset(far)
                return
            near = stream
            if buckets := self._users.buckets(user):
                near, far = (
                    _throttled(end, bucket)
                    for end, bucket in zip((near, far), buckets, strict=True)
                )
            tunnel.relay = self._relay(near, far, on_done=lambda _: self._users.leave(tunnel))
        finally:
            if tunnel.relay is None:
                self._users.leave(tunnel)

    def _visit(self, stream: asyncio.Transport) -> None:
        """Somebody who wants no tunnel gets to the web site."""
        if self._admission.has_room():
            self._spawn(stream, self._carry_visitor(stream))
        else:
            linger.reset(stream)

    async def _carry_visitor(self, stream: asyncio.Transport) -> None:
        assert self._options.fallback is not None
        with self.counters.dialling():
            far = await self._dialer.connect(self._options.fallback, Holding)
        self._relay(stream, far)

    async def _dial(self, user: User) -> asyncio.Transport:
        try:
            return await self._dialer.connect(parse_endpoint("dst", user.dst), Holding)
        except NetworkError as error:
            self._events.dial_failures += 1
            self.counters.dial_failures += 1
            raise NetworkError(f"user {fingerprint(user.path)}: {error}") from None

    # Housekeeping.

    async def _keep_house(self) -> None:
        flushed = time.monotonic()
        while True:
            await asyncio.sleep(EXPIRY_INTERVAL)
            if lapsed := self._users.lapsed():
                await in_slices(self._users.cut(lapsed, EXPIRED_REASON))
            if time.monotonic() - flushed >= FLUSH_INTERVAL:
                await self._save_counters()
                flushed = time.monotonic()

    async def _save_counters(self) -> None:
        try:
            await self._commands.save_counters()
        except StoreError as error:
            logger.error("the counters could not be saved: %s", error)

    async def _metrics(self) -> tuple[list[bytes], str]:
        page = metrics.render(self._users, self._events, each=self._options.metrics_users)
        pieces = await in_slices(page)
        return [self.metrics_page().encode(), *pieces], CONTENT_TYPE


def _throttled(transport: asyncio.Transport, bucket: Bucket) -> Throttle:
    throttle = Throttle(bucket)
    throttle.start(transport)
    return throttle


def _controller_access(options: MultiUserOptions) -> tuple[TlsFiles | None, Access]:
    """How the controller is reached. Raises UsageError."""
    token = read_token(options.token_file) if options.token_file else ""
    hosts = options.controller_hosts
    wildcard = any(host in ("", "0.0.0.0", "::") for host in hosts)
    tls: TlsFiles | None = None
    if options.controller_cert:
        tls = server_tls(
            cert=options.controller_cert,
            key=options.controller_key,
            tls_min=options.tls_min,
            alpn=alpn(wss=True),
            options=("-c-cert", "-c-key"),
        )
        hosts += tls.identity.names if tls.identity is not None else ()
    return tls, Access(token, hosts, any_address=wildcard)
