"""TLS contexts that follow their files, so that renewed certificates need no restart.

A context in use is never modified: `ssl` cannot undo a `load_cert_chain()` that failed halfway.
Instead, a new context is made from the changed files and replaces the old one if that succeeds.
Connections keep their context. The new context declines session tickets of the old one, which
costs those clients only a full handshake.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterable
from dataclasses import replace

from mtt.errors import MttError, UsageError
from mtt.followed import FollowedFiles
from mtt.log import logger
from mtt.trust import certificates
from mtt.trust.identity import Identity
from mtt.trust.pem import PemSource, read_pem
from mtt.trust.tls_options import ServerTls

Loaded = tuple[ssl.SSLContext, Identity | None]


class TlsFiles(FollowedFiles):
    """The TLS context of a client or server, and the files it is made from.

    `load` makes the context, and the identity of a server: in the constructor, and in a thread
    after every change. It raises MttError. Among `files`, empty paths and sources that are not
    files are ignored. `on_change` is called after the context was replaced. `own` is a client's
    certificate. `presented` is the certificate that this side presents, if it has one.
    """

    def __init__(
        self,
        load: Callable[[], Loaded],
        files: Iterable[PemSource],
        *,
        on_change: Callable[[], object] | None = None,
        own: PemSource = "",
    ) -> None:
        self._load = load
        self._own = own
        self._on_change = on_change
        super().__init__(path for path in files if path and isinstance(path, str))
        self._context, self.identity, self.presented = self._load_all()

    def context(self) -> ssl.SSLContext:
        """The context for a new connection."""
        return self._context

    @property
    def description(self) -> str:
        """One log line about the server's identity, see `Identity.words`, or the client's files."""
        if self.identity is None:
            return ", ".join(self.files)
        return f"{self.identity.words.description}, pin {self.identity.words.pin}"

    def describe(self) -> None:
        """Read what `presented` contains: slow on first use, see `Identity.words`."""
        if self.presented is not None:
            _ = self.presented.words

    def warn(self) -> None:
        """Log why clients would refuse the server's certificate."""
        for line in self.identity.words.warnings if self.identity is not None else ():
            logger.warning("%s", line)

    def renew(self) -> None:
        """Reload changed files synchronously, for a process without an event loop."""
        if not self.has_changed():
            return
        try:
            self._context, self.identity, self.presented = self._load_all()
        except MttError as error:
            logger.error("the old certificates stay in use: %s", error)

    async def _read_again(self) -> None:
        before = self.identity
        try:
            context, identity, presented = await asyncio.to_thread(self._load_all)
            if presented is not None:
                await asyncio.to_thread(lambda: presented.words)
        except MttError as error:
            logger.error("the old certificates stay in use: %s", error)
            return
        hint = ""
        if identity is not None and before is not None:
            hint = " (a NEW pin)" if identity.words.pin != before.words.pin else ""
        self._context, self.identity, self.presented = context, identity, presented
        logger.info("reloaded: %s%s", self.description, hint)
        self.warn()
        if self._on_change is not None:
            self._on_change()

    def _load_all(self) -> tuple[ssl.SSLContext, Identity | None, Identity | None]:
        context, identity = self._load()
        if identity is not None or not self._own:
            return context, identity, identity
        return context, None, Identity(read_pem("-cert", self._own), path=str(self._own))


def server_tls(tls: ServerTls) -> TlsFiles:
    """The TLS context of a server, see `certificates.server_context()`.

    With `cert_dir`, uses the self-signed identity kept there. Raises UsageError or StartError.
    """
    made: tuple[bytes, Identity] | None = None
    kept = tls.cert_dir
    if kept:
        from mtt.trust.certdir import kept_pair

        cert, key = kept_pair(kept, tls.name)
        tls = replace(tls, cert=cert, key=key, options=("-cert-dir", "-cert-dir"))
    elif not tls.cert and not tls.key:
        from mtt.trust.selfsigned import new_identity

        made = new_identity(tls.name)  # only once: a reload of -client-ca must keep the identity

    try:
        return TlsFiles(
            lambda: certificates.server_context(tls, made), (tls.cert, tls.key, tls.client_ca)
        )
    except UsageError as error:
        if not kept or not str(error).startswith("-cert-dir"):
            raise
        advice = f"restore {tls.cert} and {tls.key}, or remove both to get a new identity and pin"
        raise UsageError(f"{error}; {advice}") from None
