"""The management of the server: controller, database, and periodic tasks."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from mtt.errors import UsageError, describe
from mtt.http.access import AccessRules
from mtt.log import logger
from mtt.net.resolve import Resolver
from mtt.observe.metrics import CONTENT_TYPE
from mtt.trust.reload import server_tls
from mtt.users.sqlite import SqliteStore
from mtt.users.store import MemoryStore, Store, StoreError
from mtt_mu_server import metrics
from mtt_mu_server.commands import Commands, Replicas, in_slices
from mtt_mu_server.control import Controller
from mtt_mu_server.metrics_server import UserMetricsServer
from mtt_mu_server.options import MultiUserOptions
from mtt_mu_server.users import Users

if TYPE_CHECKING:
    from mtt_mu_server.live_events import LiveEvents
    from mtt_mu_server.user_api import UserApi

# Seconds between checks for expired users with open connections.
EXPIRY_INTERVAL = 1.0
# The same if the API has set anything: users can exceed their quota by the traffic of this time.
# With quotas, a check takes 1 us for each of their connections, and a report of each worker.
QUOTA_INTERVAL = 0.25

# Seconds between writes of the counters to the database: the most that a crash can lose. Users are
# not affected; they are written before a command is answered.
FLUSH_INTERVAL = 10.0

# The output of `openssl rand -hex 8`: 64 bits, infeasible to guess at a thousand tries a second.
MIN_TOKEN_LENGTH = 16
# A token is one header line.
MAX_TOKEN_LENGTH = 4096
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*", re.ASCII)  # RFC 6750, 2.1

EXPIRED_REASON = "the user has expired"
QUOTA_REASON = "the user's quota is used up"


class Management:
    """Manages `users` for the operator, from `start()` to `close()`.

    Args:
        events: counters for the metrics.
        service_page: returns the metrics that are not about users.

    Raises UsageError if the controller's certificate or token is unusable.
    """

    def __init__(
        self, options: MultiUserOptions, users: Users, events: metrics.Events,
        service_page: Callable[[], str],
    ) -> None:  # fmt: skip
        self._options = options
        self._users = users
        self._events = events
        self._service_page = service_page
        self.store: Store = SqliteStore(options.db) if options.db else MemoryStore()
        self.commands = Commands(users, self.store)
        hosts = options.controller_hosts
        wildcard = any(host in ("", "0.0.0.0", "::") for host in hosts)
        token = read_token(options.token_file) if options.token_file else ""
        self.tls = server_tls(options.controller_tls) if options.controller_tls else None
        if self.tls is not None and self.tls.identity is not None:
            hosts += self.tls.identity.words.names
        self.controller = Controller(
            access=AccessRules(token, hosts, any_address=wildcard),
            run=self.commands.run, make_events=self._make_events, make_api=self._make_api,
            metrics=self._metrics,
            context=self.tls.context if self.tls is not None else None,
        )  # fmt: skip
        self.metrics_server: UserMetricsServer | None = None
        if options.metrics is not None or options.metrics_unix:
            self.metrics_server = UserMetricsServer(
                self._metrics, options.metrics, options.metrics_unix
            )
        self._housekeeper: asyncio.Task[None] | None = None

    @property
    def addresses(self) -> list[str]:
        """The addresses of the controller, with the actual port if port 0 was asked for."""
        return self.controller.addresses

    def replicate_to(self, workers: Replicas, service_page: Callable[[], str]) -> None:
        """Before `load()`: apply changes to several `workers` too; use their combined metrics."""
        self.commands.replicas = workers
        self._service_page = service_page

    async def load(self) -> None:
        """Read the store. Raises StartError."""
        rows, counters = await self.store.load()
        self._users.load(rows, counters, await self.store.profiles())

    async def start(self, resolver: Resolver) -> None:
        """After `load()`: start the controller. Raises StartError."""
        self._events.commands = self.commands.done
        options = self._options
        await self.controller.start(
            options.controller, options.controller_unix, resolver, options.inherited.control
        )
        if self.metrics_server is not None:
            await self.metrics_server.serve(resolver)
        self._housekeeper = asyncio.get_running_loop().create_task(self._keep_house())
        if self.tls is not None:
            self.tls.warn()

    def describe(self) -> str:
        """A summary for the log."""
        return (
            f"{len(self._users)} users, controller on {', '.join(self.addresses)}"
            f"{'' if self.store.is_durable else ' (no -db: users are lost when the server stops)'}"
        )

    def cleanup(self) -> None:
        """Stop listening."""
        self.controller.cleanup()
        if self.metrics_server is not None:
            self.metrics_server.cleanup()

    async def stop(self) -> None:
        """Stop the controller and the periodic tasks."""
        self.cleanup()
        if self._housekeeper is not None:
            self._housekeeper.cancel()
            await asyncio.wait([self._housekeeper])
        await self.controller.close()
        if self.metrics_server is not None:
            await self.metrics_server.close()

    async def close(self) -> None:
        """After `stop()`, when all tunnels have ended: save the final counters."""
        if self._housekeeper is not None:  # otherwise the start has failed
            self._housekeeper = None
            await self._save_counters()
        await self.store.close()

    async def _keep_house(self) -> None:
        flushed = time.monotonic()
        while True:
            await asyncio.sleep(QUOTA_INTERVAL if self._users.profiles else EXPIRY_INTERVAL)
            if lapsed := self._users.lapsed():
                await in_slices(self._users.cut(lapsed, EXPIRED_REASON))
            await self._enforce_quotas()
            if time.monotonic() - flushed >= FLUSH_INTERVAL:
                await self._save_counters()
                flushed = time.monotonic()

    async def _enforce_quotas(self) -> None:
        """Reset the counters that are due, and cut users without quota left."""
        if due := self._users.due():
            try:
                await self.commands.reset(due)
            except StoreError as error:
                logger.error("cannot reset the counters of %d users: %s", len(due), error)
                self._users.due_again()
        limited = self._users.limited()
        if not limited:
            return
        await self.commands.settle()
        for path in limited:
            self._users.settle(path)
        used_up = [path for path in limited if self._users.is_used_up(path)]
        await in_slices(self._users.cut(used_up, QUOTA_REASON))

    async def _save_counters(self) -> None:
        if not self.store.is_durable:
            return
        try:
            await self.commands.save_counters()
        except StoreError as error:
            logger.error("cannot save the counters: %s", error)

    def _make_events(self) -> LiveEvents:
        from mtt_mu_server.live_events import LiveEvents

        return LiveEvents(self._users, self.commands.settle)

    def _make_api(self) -> UserApi:
        from mtt_mu_server.user_api import UserApi

        return UserApi(self._users, self.commands)

    async def _metrics(self) -> tuple[list[bytes], str]:
        await self.commands.settle()
        page = metrics.render(self._users, self._events, each=self._options.metrics_users)
        pieces = await in_slices(page)
        return [self._service_page().encode(), *pieces], CONTENT_TYPE


def read_token(path: str) -> str:
    """The token in a file. Raises UsageError if it is missing or invalid."""
    option = "-c-token-file"
    try:
        with open(path, encoding="ascii") as file:
            token = file.read(MAX_TOKEN_LENGTH + 1).strip()
            others = os.fstat(file.fileno()).st_mode & 0o077
    except (OSError, UnicodeDecodeError, ValueError) as error:
        reason = "it is not text" if isinstance(error, UnicodeDecodeError) else describe(error)
        raise UsageError(f"{option}: cannot read {path}: {reason}") from None
    how = "make one with: openssl rand -hex 32"
    if not MIN_TOKEN_LENGTH <= len(token) <= MAX_TOKEN_LENGTH:
        raise UsageError(f"{option}: the token in {path} has fewer than {MIN_TOKEN_LENGTH} "
                         f"characters, or too many; {how}")  # fmt: skip
    if not _TOKEN.fullmatch(token):
        raise UsageError(
            f"{option}: {path} does not hold one token of letters, digits and -._~+/; {how}"
        )
    if others and os.name == "posix":
        logger.warning("%s: others may read %s; run chmod 600 on it", option, path)
    return token
