"""Who may join a group, and who may use it.

The first agent of a new group sets its password, unless the operator has. From then on agents must
show it, and it is never overwritten. Users log in with the group's name and password.

Checking an agent's password against the store is slow on purpose. A password that matched is kept
as a hash with a key of this process, so that later checks take microseconds. A changed or removed
password in the store takes effect when the next agent joins.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from anyproxy.options import DATABASE, FILE, CredentialOptions, GroupOptions
from mtt.log import Throttle
from mtt.outbound.groups import Groups
from mtt.users.group_passwords import FileStore, PasswordStore, SqliteStore, check_stored
from mtt.users.login_throttle import LoginThrottle

# Slow checks at a time, 16 MiB each. After a restart agents wait for each other, but the gateway
# does not stand still.
CHECKS = 2
# Verified passwords to keep; above it, those of groups without agents are forgotten.
MAX_VERIFIED = 1000

WRONG_PASSWORD = "wrong group password"
NO_PASSWORD = "the group needs a password"
HAS_NO_PASSWORD = "the group has no password while agents without one are connected"
BLOCKED = "too many failed logins from this address; wait a minute"
AT_LIMIT = "its limit"
STORE_FAILED = "the password store is not available"


class _Verified(NamedTuple):
    """A password that was right."""

    digest: bytes
    hashed: str  # in the store; empty without a store


class Credentials:
    """The passwords of all groups.

    Args:
        options: where they are stored.
        group_options: returns the options of a group.
        groups: the groups with agents.

    Attributes:
        throttle: the failed logins of agents, users and pages.

    Raises UsageError if the store cannot be used.
    """

    def __init__(
        self,
        options: CredentialOptions,
        group_options: Callable[[str], GroupOptions],
        groups: Groups,
    ) -> None:
        self.throttle = LoginThrottle()
        self._options = options
        self._group_options = group_options
        self._groups = groups
        self._store: PasswordStore | None = None  # None: in memory only
        if options.kind == FILE:
            self._store = FileStore(options.path)
        elif options.kind == DATABASE:
            self._store = SqliteStore(options.path, options.table)
        self._key = os.urandom(32)
        self._verified: dict[str, _Verified] = {}  # by group
        # Threads of their own: agents with wrong passwords must delay neither name lookups nor
        # agents whose password is known. They start when they are needed.
        self._checks = ThreadPoolExecutor(CHECKS, "passwords")
        self._lookups = ThreadPoolExecutor(1, "known-passwords")
        self._store_failures = Throttle()

    def close(self) -> None:
        """Start no further checks."""
        self._checks.shutdown(wait=False, cancel_futures=True)
        self._lookups.shutdown(wait=False, cancel_futures=True)

    # Agents.

    async def admit_agent(self, group: str, agent: str, password: bytes, address: str) -> str:
        """Why an agent may not join `group`; "" if it may join now."""
        if self.throttle.blocks(address):
            return BLOCKED
        options = self._group_options(group)
        reason = await self._check_agent(group, options, password, address)
        if not reason and self._group_options(group).password != options.password:
            # The configuration has changed meanwhile.
            return await self.admit_agent(group, agent, password, address)
        present = self._groups.get(group)
        if reason or present is None or not options.max_agents:
            return reason
        # An agent of the same name would be replaced: it is this one, back from a lost connection.
        count = len(present.agents) - (agent in present.agents)
        return f"the group has {count} agents, {AT_LIMIT}" if count >= options.max_agents else ""

    async def _check_agent(
        self, group: str, options: GroupOptions, password: bytes, address: str
    ) -> str:
        """Why an agent with this password may not join; "" if it may."""
        if options.password:
            return self._check_fixed(group, options.password, password, address)
        if not password:
            return await self._check_nothing(group, options)
        if self._store is None:
            return self._check_in_memory(group, password, address)
        return await self._check_stored(self._store, group, password, address)

    def _check_fixed(self, group: str, fixed: str, password: bytes, address: str) -> str:
        """Check the password of a group for which the operator has set one."""
        if not password:
            return NO_PASSWORD
        digest = self._digest(password)
        # Digests, because comparing the passwords would reveal the length.
        if not hmac.compare_digest(digest, self._digest(fixed.encode())):
            return self._wrong(address)
        self._remember(group, _Verified(digest, ""))
        return ""

    async def _check_nothing(self, group: str, options: GroupOptions) -> str:
        """Check an agent that shows no password."""
        if not (self._options.allow_without_password or options.allow_without_password):
            return NO_PASSWORD
        stored = None
        if self._store is not None:
            try:
                stored = await self._look_up(self._store, group)
            except OSError as error:
                return self._store_failed(error)
        return NO_PASSWORD if stored is not None or self._known(group) is not None else ""

    def _check_in_memory(self, group: str, password: bytes, address: str) -> str:
        known, digest = self._known(group), self._digest(password)
        if known is None:
            return self._accept(group, _Verified(digest, ""))
        return "" if hmac.compare_digest(digest, known.digest) else self._wrong(address)

    async def _check_stored(
        self, store: PasswordStore, group: str, password: bytes, address: str
    ) -> str:
        known, digest = self._known(group), self._digest(password)
        if known is None and self._groups.get(group) is not None:
            return HAS_NO_PASSWORD
        try:
            if (
                known is not None
                and hmac.compare_digest(digest, known.digest)
                and await self._look_up(store, group) == known.hashed
            ):
                return ""
            hashed = await asyncio.get_running_loop().run_in_executor(
                self._checks, self._check_slowly, store, group, password, address
            )
        except OSError as error:
            return self._store_failed(error)
        if hashed is None:
            return BLOCKED if self.throttle.blocks(address) else WRONG_PASSWORD
        return self._accept(group, _Verified(digest, hashed))

    def _check_slowly(
        self, store: PasswordStore, group: str, password: bytes, address: str
    ) -> str | None:
        """See `check_stored`. Runs in a thread: a failure counts although the agent has left."""
        if self.throttle.blocks(address):  # by checks that this one has waited for
            return None
        hashed = check_stored(store, group, password)
        if hashed is None:
            self.throttle.failed(address)
        return hashed

    async def _look_up(self, store: PasswordStore, group: str) -> str | None:
        return await asyncio.get_running_loop().run_in_executor(self._lookups, store.get, group)

    def _known(self, group: str) -> _Verified | None:
        if self._store is None and self._groups.get(group) is None:
            return None  # the group has gone, and its password with it
        return self._verified.get(group)

    def _accept(self, group: str, verified: _Verified) -> str:
        """Keep a password that was right, or is the first of a new group."""
        if self._groups.get(group) is not None and self._known(group) is None:
            # Otherwise it would open the targets of those agents to users with this password.
            return HAS_NO_PASSWORD
        self._remember(group, verified)
        return ""

    def _remember(self, group: str, verified: _Verified) -> None:
        self._verified[group] = verified
        if len(self._verified) > MAX_VERIFIED:
            self._verified = {
                name: each
                for name, each in self._verified.items()
                if name == group or self._groups.get(name) is not None
            }

    def _wrong(self, address: str) -> str:
        self.throttle.failed(address)
        return WRONG_PASSWORD

    def _store_failed(self, error: OSError) -> str:
        self._store_failures.log(logging.ERROR, "passwords of groups: %s", error)
        return STORE_FAILED

    # Users.

    def check_user(self, group: str, password: bytes, address: str) -> bool | None:
        """Whether a user may use `group`; None if it has no agents.

        Without agents only a password that the operator has set is checked: there is no other.
        """
        if self.throttle.blocks(address):
            return False
        fixed, has_agents = self._group_options(group).password, self._groups.get(group) is not None
        if not (fixed or has_agents):
            return None
        known = self._verified.get(group)
        digest = self._digest(fixed.encode()) if fixed else known.digest if known else b""
        if hmac.compare_digest(self._digest(password), digest):
            return True if has_agents else None
        self.throttle.failed(address)
        return False

    def _digest(self, password: bytes) -> bytes:
        # Runs for each request of a user; an HMAC of OpenSSL takes three times as long.
        return hashlib.blake2b(password, key=self._key).digest()
