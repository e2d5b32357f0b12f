"""Who may ask: rules for HTTP on a socket that is for the owner of this machine alone."""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable

from mtt.address import is_ip, is_loopback
from mtt.wire.addresses import unbracketed
from mtt.wire.http1 import Request

FORBIDDEN, UNAUTHORIZED = 403, 401


class Access:
    """The rules for every request, whatever it asks for.

    Args:
        token: what `Authorization: Bearer` must carry; empty if nothing is asked for.
        hosts: names and addresses that we may be called by, besides those that always mean this
            machine.
        any_address: we may be called by any IP address: we listen on all interfaces.
        any_name: we may be called whatever anybody likes: what we tell is public.
    """

    def __init__(
        self,
        token: str = "",
        hosts: Iterable[str] = (),
        *,
        any_address: bool = False,
        any_name: bool = False,
    ) -> None:
        self._token = token.encode()
        self._hosts = {host.lower() for host in hosts}
        self._any_address = any_address
        self._any_name = any_name

    def refusal(self, request: Request) -> tuple[int, str] | None:
        """Status and reason if `request` must not be done."""
        # A web page can make its reader's browser send requests here, with any JSON as plain
        # text. Browsers tell by Origin, or by Host if the page's own name was pointed at us (DNS
        # rebinding).
        if request.first("origin") is not None:
            return FORBIDDEN, "requests of web pages (with Origin) are refused"
        if not (self._any_name or self._is_ours(request.host)):
            return FORBIDDEN, "Host is not a name of this server"
        if self._token and not self._has_token(request):
            return UNAUTHORIZED, "Authorization: the token is missing or wrong"
        return None

    def _is_ours(self, authority: str) -> bool:
        # The port does not matter: it is another one where a tunnel leads here, as `ssh -L`.
        host = re.sub(r":[0-9]*$", "", authority).lower()
        try:
            host = unbracketed(host)
        except ValueError:
            return False
        if host in ("", "localhost") or host in self._hosts or is_loopback(host):
            return True  # without a name only HTTP/1.0 and hand-made requests come
        return (self._any_address and is_ip(host)) or f"*.{host.partition('.')[2]}" in self._hosts

    def _has_token(self, request: Request) -> bool:
        scheme, _, given = (request.first("authorization") or "").partition(" ")
        # Compared in constant time: the time of a comparison that stops at the first difference
        # tells how much of a guess was right.
        matches = hmac.compare_digest(given.strip().encode("latin-1"), self._token)
        return matches and scheme.lower() == "bearer"
