"""Which HTTP requests are allowed on sockets for operators."""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable

from mtt.address import is_ip, is_loopback
from mtt.wire.addresses import unbracketed
from mtt.wire.http1 import Request

# Status, reason and headers of an answer.
Refusal = tuple[int, str, *tuple[tuple[str, str], ...]]


class AccessRules:
    """The rules of one server.

    Args:
        token: what `Authorization: Bearer` must carry; empty to require none.
        hosts: names and addresses accepted in Host, besides those of loopback.
        any_address: accept any IP address in Host, for servers that listen on all interfaces.
        any_name: accept any Host, for servers whose answers are public, or whose pages log in.
        own_pages: accept requests of web pages whose Origin is the Host.
    """

    def __init__(
        self,
        token: str = "",
        hosts: Iterable[str] = (),
        *,
        any_address: bool = False,
        any_name: bool = False,
        own_pages: bool = False,
    ) -> None:
        self._token = token.encode()
        self._hosts = {host.lower() for host in hosts}
        self._any_address = any_address
        self._any_name = any_name
        self._own_pages = own_pages

    def refusal(self, request: Request) -> Refusal | None:
        """The answer to `request` if it is not allowed."""
        # A web page can make a browser send requests here, with any JSON as plain text. Origin
        # reveals that, or Host if the page's own name resolves to this server (DNS rebinding).
        origin = request.first("origin")
        if origin is not None and not (
            self._own_pages and origin.partition("://")[2].lower() == request.host.lower() != ""
        ):
            return 403, "requests from web pages (with Origin) are refused"
        if not (self._any_name or self._is_own_name(request.host)):
            return 403, "Host is not a name of this server"
        if self._token and not self._has_token(request):
            reason = "Authorization: the token is missing or wrong"
            return 401, reason, ("WWW-Authenticate", "Bearer")
        return None

    def _is_own_name(self, authority: str) -> bool:
        # The port may differ, for example behind `ssh -L`.
        host = re.sub(r":[0-9]*$", "", authority).lower()
        try:
            host = unbracketed(host)
        except ValueError:
            return False
        if host in ("", "localhost") or host in self._hosts or is_loopback(host):
            return True  # browsers always send a name
        return (self._any_address and is_ip(host)) or f"*.{host.partition('.')[2]}" in self._hosts

    def _has_token(self, request: Request) -> bool:
        scheme, _, given = (request.first("authorization") or "").partition(" ")
        # In constant time, which reveals nothing about how much of a guess is right.
        matches = hmac.compare_digest(given.strip().encode("latin-1"), self._token)
        return matches and scheme.lower() == "bearer"
