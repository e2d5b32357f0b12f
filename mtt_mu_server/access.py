"""Who may talk to the controller."""

from __future__ import annotations

import hmac
import os
import re
from collections.abc import Iterable

from mtt.errors import UsageError, describe
from mtt.log import logger
from mtt.net.address import is_ip
from mtt.wire.http1 import Request
from mtt_mu_server.options import is_loopback

# What `openssl rand -hex 8` gives; whoever may try a thousand a second needs an age for half.
MIN_TOKEN_LENGTH = 16
# A token is one header line.
MAX_TOKEN_LENGTH = 4096
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*", re.ASCII)  # RFC 6750, 2.1

FORBIDDEN, UNAUTHORIZED = 403, 401


class Access:
    """The rules for every request, whatever it asks for.

    Args:
        token: what `Authorization: Bearer` must carry; empty if nothing is asked for.
        hosts: names and addresses that the controller may be called by, besides those that
            always mean this machine.
        any_address: it may be called by any IP address: it listens on all interfaces.
    """

    def __init__(
        self, token: str = "", hosts: Iterable[str] = (), *, any_address: bool = False
    ) -> None:
        self._token = token.encode()
        self._hosts = {host.lower() for host in hosts}
        self._any_address = any_address

    def refusal(self, request: Request) -> tuple[int, str] | None:
        """Status and reason if `request` must not be done."""
        # A web page can make its reader's browser send requests here, with any JSON as plain
        # text. Browsers tell by Origin, or by Host if the page's own name was pointed at us (DNS
        # rebinding).
        if request.first("origin") is not None:
            return FORBIDDEN, "requests of web pages (with Origin) are refused"
        if not self._is_ours(request.host):
            return FORBIDDEN, "Host is not a name of this controller"
        if self._token and not self._has_token(request):
            return UNAUTHORIZED, "Authorization: the token is missing or wrong"
        return None

    def _is_ours(self, authority: str) -> bool:
        # The port does not matter: it is another one where a tunnel leads here, as `ssh -L`.
        host = re.sub(r":[0-9]*$", "", authority).lower()
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        if host in ("", "localhost") or host in self._hosts or is_loopback(host):
            return True  # without a name only HTTP/1.0 and hand-made requests come
        return (self._any_address and is_ip(host)) or f"*.{host.partition('.')[2]}" in self._hosts

    def _has_token(self, request: Request) -> bool:
        scheme, _, given = (request.first("authorization") or "").partition(" ")
        # Compared in constant time: the time of a comparison that stops at the first difference
        # tells how much of a guess was right.
        matches = hmac.compare_digest(given.strip().encode("latin-1"), self._token)
        return matches and scheme.lower() == "bearer"


def read_token(path: str) -> str:
    """The token in a file. Raises UsageError if there is none, or a bad one."""
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
        raise UsageError(f"{option}: the token in {path} has not at least {MIN_TOKEN_LENGTH} "
                         f"characters, or too many; {how}")  # fmt: skip
    if not _TOKEN.fullmatch(token):
        raise UsageError(
            f"{option}: {path} does not hold one token of letters, digits and -._~+/; {how}"
        )
    if others and os.name == "posix":
        logger.warning("%s: others may read %s; run chmod 600 on it", option, path)
    return token
