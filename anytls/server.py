"""anytls-server: authenticates users and connects to the destinations that the rules permit."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Iterator
from functools import partial

from anytls.options import ServerOptions
from mtt.address import host_port, peer_name
from mtt.errors import DestinationError, NetworkError, UsageError
from mtt.files import reading_again
from mtt.inbound.anytls_answer import ANSWER_TIME, report_outcome
from mtt.inbound.anytls_reader import AnyTlsReader
from mtt.layers.anytls_server import ServerStream
from mtt.log import Throttle, logger
from mtt.net.resolve import Resolver, use_threads
from mtt.observe import metrics
from mtt.outbound.direct import DirectDialer
from mtt.outcome import Outcome
from mtt.proxy.uot_relay import UotRelay
from mtt.tunnels.open_tunnels import Carrier
from mtt.tunnels.server import ServerService
from mtt.users.accounts import Account, Accounts
from mtt.users.file import read_users
from mtt.users.user import User
from mtt.wire import uot
from mtt.wire.anytls import password_hash
from mtt.wire.padding import DEFAULT, Scheme

# Log lines about denied destinations per interval of the throttle: enough for one web page, but not
# for a scan of the operator's network.
DENIALS_SHOWN = 5


class Server(ServerService):
    """The service of anytls-server: `start()` listens, `close()` ends everything.

    Raises UsageError if the certificate is unusable.
    """

    def __init__(self, options: ServerOptions) -> None:
        self._resolver = Resolver()
        self._accounts = Accounts(_hashed(options.users), prefix="mtt_anytls_user_")
        super().__init__(
            options, self._resolver, options.tls, on_session=self._accounts.session_changed
        )
        self._options = options
        self._reloading: asyncio.Task[None] | None = None
        self._denied = 0  # streams to denied destinations
        self._denials = Throttle(DENIALS_SHOWN)
        self._outbound = DirectDialer(self._resolver, self._allows)

    def _reader(self) -> AnyTlsReader[Account]:
        options = self._options
        return AnyTlsReader(
            self._serve,
            find=self._accounts.find,
            scheme=Scheme.parse(options.padding_scheme) if options.padding_scheme else DEFAULT,
            alpn=(*options.tls.alpn, *options.alpn_ignored) if options.tls is not None else (),
        )

    async def start(self) -> None:
        """Listen. Raises StartError if that fails."""
        use_threads()
        await self.serve(self._frontend.accept)
        self.follow()

    def _description(self) -> str:
        tls = "; without TLS" if self._tls is None else ""
        return f"AnyTLS, users: {len(self._accounts)}{tls}"

    async def close(self) -> None:
        self.cleanup()
        if self._reloading is not None:
            self._reloading.cancel()
            await asyncio.wait([self._reloading])
        await super().close()

    # Users.

    def reload_files(self) -> None:
        """Reload certificates, keys and users.

        Cuts the sessions of removed users and changed passwords; all others continue.
        """
        super().reload_files()
        if self._options.users_file and (self._reloading is None or self._reloading.done()):
            self._reloading = asyncio.get_running_loop().create_task(self._reload_users())

    def renew(self) -> None:
        super().renew()
        if self._options.users_file:
            with _old_users_stay():
                self._accounts.replace(self._read_users())

    def _read_users(self) -> dict[str, bytes]:
        with reading_again():
            return _hashed(read_users("-users", self._options.users_file))

    async def _reload_users(self) -> None:
        with _old_users_stay():
            # A long list takes a while.
            passwords = await asyncio.to_thread(self._read_users)
            changed = self._accounts.replace(passwords)
            sessions = [session for account in changed for session in account.sessions]
            for session in sessions:
                session.abort()
            former = f"; sessions of removed users cut: {len(sessions)}" if sessions else ""
            logger.info("reloaded: users: %d%s", len(self._accounts), former)

    def metrics_page(self) -> str:
        denied = metrics.metric(
            "mtt_anytls_denied_total", "counter",
            "Streams to destinations denied by -allow and -deny.",
            self._denied,
        )  # fmt: skip
        return super().metrics_page() + denied + self._accounts.page()

    # Streams.

    def _serve(self, stream: ServerStream, account: Account, host: str, port: int) -> None:
        if not self.open_tunnels.admission.has_room():
            stream.acknowledge(Outcome.GENERAL_FAILURE)
            stream.close()
            return
        version = uot.version(host)
        if version:
            self._carry_datagrams(stream, account, version)
        else:
            self.open_tunnels.spawn(stream, self._carry(stream, account, host, port))

    async def _carry(self, stream: ServerStream, account: Account, host: str, port: int) -> None:
        try:
            far = await report_outcome(stream, self._outbound.connect(host, port))
        except DestinationError as error:
            if error.outcome is Outcome.NOT_ALLOWED:
                self._denied += 1
                self._log_denied("TCP", stream, account, host, port)
                return
            self.counters.dial_failures += 1
            # At level debug only: failed destinations of users are no concern of the operator.
            logger.debug("%s: %s", peer_name(stream), error)
            return
        self._begin(account, self.open_tunnels.relay(stream, far, on_done=account.end))

    def _allows(self, _: str, address: str, port: int) -> bool:
        return self._options.policy.allows(address, port)

    def _log_denied(
        self, kind: str, stream: ServerStream, account: Account, host: str, port: int
    ) -> None:
        self._denials.info(
            "destination denied (-allow, -deny): %s %s, user %s, from %s",
            kind, host_port(host, port), account.name, peer_name(stream),
        )  # fmt: skip

    def _carry_datagrams(self, stream: ServerStream, account: Account, version: int) -> None:
        try:
            relay = self.open_tunnels.track(
                stream,
                lambda done: UotRelay(
                    stream, version, acknowledge=stream.acknowledge, resolver=self._resolver,
                    allows=self._allows,
                    denied=partial(self._log_denied, "UDP", stream, account),
                    idle_time=self._options.udp_timeout, answer_time=ANSWER_TIME, done=done,
                ),
                account.end,
            )
        except NetworkError as error:
            self.open_tunnels.failed(stream, error)
            stream.acknowledge(Outcome.GENERAL_FAILURE)
            stream.close()
            return
        self._begin(account, relay)
        relay.start()

    def _begin(self, account: Account, carrier: Carrier) -> None:
        account.begin(carrier)
        logger.debug("user %s: stream opened", account.name)


def _hashed(users: Iterable[User]) -> dict[str, bytes]:
    """The password hashes by user name."""
    return {user.name: password_hash(user.password) for user in users}


@contextlib.contextmanager
def _old_users_stay() -> Iterator[None]:
    try:
        yield
    except UsageError as error:
        logger.error("the old users stay in use: %s", error)
