"""TLS contexts that follow their files: renewed certificates are used without a restart.

A context that serves connections is never touched: `ssl` cannot take back half of a failed
`load_cert_chain()`. Instead a new one is made from the changed files, and if that works it takes
the place of the old one. Connections keep the context they began with; session tickets of the old
one are declined by the new one, which costs their owners a full handshake and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from mtt.errors import MttError, UsageError
from mtt.log import logger
from mtt.trust import certificates
from mtt.trust.identity import Identity
from mtt.trust.pem import PemSource
from mtt.trust.tls_options import ServerTls

if TYPE_CHECKING:
    from mtt.trust.selfsigned import SelfSigned

# Seconds between two looks at the files, and how long they must have been left alone before they
# are read: a certificate and its key are two files, and no tool replaces both at once. A renewal
# is due weeks before the old certificate expires; this is for the person who watches.
CHECK_INTERVAL = 5.0

Loaded = tuple[ssl.SSLContext, Identity | None]
# What can be seen of the files from outside; changed permissions are in it too, by ctime.
_State = tuple[tuple[int, ...] | None, ...]


class TlsFiles:
    """The TLS context of one end, and the files it is made from.

    Args:
        load: makes a context, and the identity of a server. Called here, and later in a thread
            of its own for every change. Raises MttError.
        files: what it is made from; what is no file, and empty paths, are left out.
        on_change: called when there is a new context.
    """

    def __init__(
        self,
        load: Callable[[], Loaded],
        files: Iterable[PemSource],
        *,
        on_change: Callable[[], object] | None = None,
    ) -> None:
        self._load = load
        self._on_change = on_change
        self.files = tuple(path for path in files if path and isinstance(path, str))
        self._tried = self._state()  # before loading: what changes meanwhile is seen as a change
        self._context, self.identity = load()
        self._asked = asyncio.Event()
        self._follower: asyncio.Task[None] | None = None

    def context(self) -> ssl.SSLContext:
        """The context for a new connection."""
        return self._context

    @property
    def description(self) -> str:
        """One line about the server's identity, for the log. Slow when it is first asked for."""
        identity = self.identity
        if identity is None:
            return ", ".join(self.files)
        return f"{identity.description}, pin {identity.pin}"

    def warn(self) -> None:
        """Log what makes clients refuse the server's certificate. Slow as `description` is."""
        for line in self.identity.warnings if self.identity is not None else ():
            logger.warning("%s", line)

    def follow(self) -> None:
        """Begin to look after the files, if there are any."""
        if self.files:
            self._follower = asyncio.get_running_loop().create_task(self._follow())

    def reload(self) -> None:
        """Read the files now, changed or not."""
        self._asked.set()

    def renew(self) -> None:
        """Read the files again if they have changed, now and here: for a process without a loop."""
        state = self._state()
        if state == self._tried:
            return
        self._tried = state
        try:
            self._context, self.identity = self._load()
        except MttError as error:
            logger.error("the old certificates stay in use: %s", error)

    async def close(self) -> None:
        """Look after the files no more."""
        if self._follower is not None:
            self._follower.cancel()
            await asyncio.wait([self._follower])

    async def _follow(self) -> None:
        # In threads, because a disk or a network file system may be slow to answer.
        seen = self._tried
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CHECK_INTERVAL):
                    await self._asked.wait()
            asked = self._asked.is_set()
            self._asked.clear()
            state = await asyncio.to_thread(self._state)
            if asked or (state != self._tried and state == seen):
                self._tried = state
                await self._try()
            seen = state

    async def _try(self) -> None:
        before = self.identity
        try:
            loaded = await asyncio.to_thread(self._load_and_describe)
        except MttError as error:
            logger.error("the old certificates stay in use: %s", error)
            return
        self._context, self.identity = loaded
        new_pin = before is not None and loaded[1] is not None and before.pin != loaded[1].pin
        logger.info("read again: %s%s", self.description, " (a NEW pin)" if new_pin else "")
        self.warn()
        if self._on_change is not None:
            self._on_change()

    def _load_and_describe(self) -> Loaded:
        context, identity = self._load()
        if identity is not None:  # decoded here and kept, not in the loop's time
            identity.words  # noqa: B018
        return context, identity

    def _state(self) -> _State:
        return tuple(_file_state(path) for path in self.files)


def _file_state(path: str) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # ValueError: a NUL in the path, which loading will complain of
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def server_tls(tls: ServerTls) -> TlsFiles:
    """The TLS of a server, see `certificates.server_context()`.

    With `cert_dir` the self-signed identity is the one kept there. Raises UsageError or StartError.
    """
    made: SelfSigned | None = None
    kept = tls.cert_dir
    if kept:
        from mtt.trust.certdir import kept_pair

        cert, key = kept_pair(kept, tls.name)
        tls = replace(tls, cert=cert, key=key, options=("-cert-dir", "-cert-dir"))
    elif not tls.cert and not tls.key:
        from mtt.trust.selfsigned import new_identity

        made = new_identity(tls.name)  # once: who we are does not change with -client-ca

    try:
        return TlsFiles(
            lambda: certificates.server_context(tls, made), (tls.cert, tls.key, tls.client_ca)
        )
    except UsageError as error:
        if not kept or not str(error).startswith(tls.options[0]):
            raise
        raise UsageError(
            f"{error}; restore {tls.cert} and {tls.key}, or remove both to get a new identity and "
            "pin"
        ) from None
