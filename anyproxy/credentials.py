"""Who may join a group, and who may use it.

The first agent of a new group sets its password, unless the operator has. From then on agents must
show it, and it is never overwritten. Users log in with the group's name and password.

An agent's password is checked against the store, which is slow on purpose. What matched is kept as
an HMAC with a key of this process, so that later agents and all users cost microseconds. A user of
a group without agents is let in without a check, but only to hear that no agent is connected.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
from collections.abc import Callable

from anyproxy.options import DATABASE, FILE, CredentialOptions, GroupOptions
from mtt.log import logger
from mtt.outbound.groups import Groups
from mtt.users.group_passwords import (
    FileStore,
    PasswordStore,
    SqliteStore,
    hash_password,
    is_unsalted,
    matches,
)
from mtt.users.login_throttle import LoginThrottle

# Slow checks at a time, 16 MiB each. After a restart agents wait for each other, but the gateway
# does not stand still.
CHECKS = 2

WRONG_PASSWORD = "wrong group password"
NO_PASSWORD = "the group needs a password"
BLOCKED = "too many failed logins from this address; wait a minute"
STORE_FAILED = "the password store is not available"


class Credentials:
    """The passwords of all groups.

    Args:
        options: where they are stored.
        group_options: returns the options of a group.
        groups: the groups with agents.

    Raises UsageError if the store cannot be used.
    """

    def __init__(
        self,
        options: CredentialOptions,
        group_options: Callable[[str], GroupOptions],
        groups: Groups,
    ) -> None:
        self._options = options
        self._group_options = group_options
        self._groups = groups
        self._store: PasswordStore | None = None  # None: in memory only
        if options.kind == FILE:
            self._store = FileStore(options.path)
        elif options.kind == DATABASE:
            self._store = SqliteStore(options.path, options.table)
        self._key = os.urandom(32)
        self._verified: dict[str, bytes] = {}  # HMACs by group
        self._checks = asyncio.Semaphore(CHECKS)
        self._throttle = LoginThrottle()

    # Agents.

    async def admit_agent(self, group: str, password: str, address: str) -> str:
        """Why an agent may not join `group`; "" if it may."""
        if self._throttle.blocks(address):
            return BLOCKED
        options = self._group_options(group)
        reason = await self._check(group, password, options)
        if reason == WRONG_PASSWORD:
            self._throttle.failed(address)
        if not reason:
            present = self._groups.get(group)
            count = len(present.agents) if present is not None else 0
            if options.max_agents and count >= options.max_agents:
                return f"the group has {count} agents, which is its limit"
        return reason

    async def _check(self, group: str, password: str, options: GroupOptions) -> str:
        if options.password:
            if not hmac.compare_digest(password.encode(), options.password.encode()):
                return WRONG_PASSWORD
            self._verified[group] = self._digest(password)
            return ""
        if self._groups.get(group) is None and self._store is None:
            self._verified.pop(group, None)  # the group has gone, and its password with it
        known = self._verified.get(group)
        if not password:
            return await self._check_nothing(group, known, options)
        if known is not None and hmac.compare_digest(self._digest(password), known):
            return ""
        if self._store is None:
            if known is not None:
                return WRONG_PASSWORD
        else:
            async with self._checks:
                try:
                    if not await asyncio.to_thread(self._compare, self._store, group, password):
                        return WRONG_PASSWORD
                except OSError as error:
                    logger.error("passwords of groups: %s", error)
                    return STORE_FAILED
        self._verified[group] = self._digest(password)
        return ""

    async def _check_nothing(self, group: str, known: bytes | None, options: GroupOptions) -> str:
        """Whether an agent may join without a password."""
        may = self._options.allow_without_password or options.allow_without_password
        if known is not None or not may:
            return NO_PASSWORD
        if self._store is not None:
            try:
                if await asyncio.to_thread(self._store.get, group) is not None:
                    return NO_PASSWORD
            except OSError as error:
                logger.error("passwords of groups: %s", error)
                return STORE_FAILED
        return ""

    @staticmethod
    def _compare(store: PasswordStore, group: str, password: str) -> bool:
        """Compare with the stored password, or store that of a new group. Runs in a thread."""
        hashed = store.get(group)
        if hashed is not None and not matches(password, hashed):
            return False
        if hashed is None or is_unsalted(hashed):
            store.put(group, hash_password(password))
        return True

    # Users.

    def check_user(self, group: str, password: bytes, address: str) -> bool | None:
        """Whether a user may use `group`; None if it has no agents, so that nobody can tell."""
        if self._throttle.blocks(address):
            return False
        if self._groups.get(group) is None:
            return None
        known = self._verified.get(group)
        if known is not None and hmac.compare_digest(self._digest_bytes(password), known):
            return True
        self.count_failure(address)
        return False

    def count_failure(self, address: str) -> None:
        """Count a failed login."""
        self._throttle.failed(address)

    def _digest(self, password: str) -> bytes:
        return self._digest_bytes(password.encode())

    def _digest_bytes(self, password: bytes) -> bytes:
        return hmac.digest(self._key, password, hashlib.sha256)
