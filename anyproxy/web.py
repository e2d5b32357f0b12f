"""The JSON interface for pages: logins, sessions, and figures of the running program.

    POST /api/auth/login {"username", "password"} -> cookie
    POST /api/auth/logout    GET /api/auth/check
    GET /api/...             the views that the program gives; with the cookie, if there is a login

Paths and answers are those of the Go program, without its `Access-Control-Allow-Origin: *`.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs

from anyproxy.options import WebOptions
from mtt.errors import MttError
from mtt.http.access import AccessRules
from mtt.http.exchange import Exchange
from mtt.http.listener import HttpListener
from mtt.log import logger
from mtt.net.admission import Pending
from mtt.net.resolve import Resolver
from mtt.options.trusted_proxies import TrustedProxies
from mtt.trust.reload import server_tls
from mtt.users.login_throttle import LoginThrottle
from mtt.users.user import User
from mtt.wire.http1 import Reply, text_reply

# Seconds without a request until a session ends.
SESSION_TIME = 24 * 3600.0
# Sessions at a time, of a handful of operators. Above it the oldest ends.
MAX_SESSIONS = 1000
# Bytes of a login.
MAX_LOGIN = 4096
# Connections without an allowed request, and between requests. A browser makes six.
MAX_CONNECTIONS = 64

_LOGIN, _LOGOUT, _CHECK = "/api/auth/login", "/api/auth/logout", "/api/auth/check"
_NO_TIME = "0001-01-01T00:00:00Z"  # Go's zero time

# Returns the value of an answer; gets the parameters of the query. None: there is no such object.
View = Callable[[Mapping[str, str]], Any]


class Web(HttpListener):
    """Serves the interface.

    Args:
        options: where, and for whom.
        cookie: the name of the cookie.
        views: makes the answers, by path.
        throttle: counts wrong logins, and blocks their addresses.

    Raises UsageError if the certificate is unusable.
    """

    def __init__(
        self,
        options: WebOptions,
        cookie: str,
        views: Mapping[str, View],
        throttle: LoginThrottle,
    ) -> None:
        self._tls = server_tls(options.tls) if options.tls is not None else None
        super().__init__(
            {},
            self._answer,
            # Without a login, Host keeps other sites' pages out (DNS rebinding). With one, they
            # lack the cookie.
            access=AccessRules(any_name=options.login is not None, own_pages=True),
            pending=Pending(MAX_CONNECTIONS, what="connections to web have made no valid request"),
            idle=Pending(MAX_CONNECTIONS, what="connections to web are idle"),
            name="web",
            context=self._tls.context if self._tls is not None else None,
        )
        self.proxies: TrustedProxies | None = None  # in front
        self._bind = options.bind
        self._login: User | None = options.login
        self._cookie = cookie
        self._views = views
        self._throttle = throttle
        self._sessions: dict[str, float] = {}  # when they end, in loop time; the oldest first

    async def serve(self, resolver: Resolver) -> None:
        """Listen. Raises StartError if that fails."""
        await self.start(self._bind, "", resolver)
        if self._tls is not None:
            self._tls.follow()
        logger.info("web on %s", ", ".join(self.addresses))

    def use_login(self, login: User | None) -> None:
        """Use another login in place of the one there was. It ends all sessions."""
        self._login = login
        self._sessions.clear()

    async def close(self) -> None:
        await super().close()
        if self._tls is not None:
            await self._tls.close()

    async def _answer(self, exchange: Exchange) -> None:
        request = exchange.request
        method = "GET" if request.method == "HEAD" else request.method
        path = request.path
        if self._login is not None and path in (_LOGIN, _LOGOUT, _CHECK):
            wanted = "GET" if path == _CHECK else "POST"
            if method != wanted:
                await self._refuse(exchange, 405, "Method not allowed", ("Allow", wanted))
            elif path == _LOGIN:
                await self._log_in(exchange)
            elif path == _LOGOUT:
                await self._log_out(exchange)
            else:
                await self._check(exchange)
            return
        if self._login is not None and path.startswith("/api/") and not self._session(exchange):
            await self._refuse(exchange, 401, "Authentication required")
            return
        view = self._views.get(path)
        if view is None:
            await self._refuse(exchange, 404, "404 page not found")
        elif method != "GET":
            await self._refuse(exchange, 405, "Method not allowed", ("Allow", "GET, HEAD"))
        else:
            query = {key: values[0] for key, values in parse_qs(request.query).items()}
            value = view(query)
            if value is None:
                await self._refuse(exchange, 404, "Not found")
            else:
                await self._send(exchange, value)

    # Sessions.

    async def _log_in(self, exchange: Exchange) -> None:
        assert self._login is not None
        peer = exchange.transport.get_extra_info("peername")
        if self.proxies is not None:
            peer = self.proxies.user(peer, exchange.request.headers) or peer
        address = peer[0] if isinstance(peer, tuple) else ""
        if self._throttle.blocks(address):
            self.report(exchange.transport, MttError("login refused: too many failures"))
            await self._refuse(exchange, 403, "Too many failed logins; wait a minute")
            return
        try:
            shown = json.loads(await exchange.body(MAX_LOGIN))
            name, password = shown["username"].encode(), shown["password"].encode()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            await self._refuse(exchange, 400, "Invalid request")
            return
        # Again: other guesses of this address have failed while this body arrived.
        if self._throttle.blocks(address) or not self._login.accepts(name, password):
            self._throttle.failed(address)
            self.report(exchange.transport, MttError("login refused: wrong user or password"))
            await self._refuse(exchange, 401, "Invalid credentials")
            return
        self._sessions.pop(self._session(exchange), None)
        token = secrets.token_hex(32)
        self._extend(token)
        if len(self._sessions) > MAX_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        value = {
            "status": "success",
            "message": "Login successful",
            "username": self._login.name,
            "expires_at": go_time(SESSION_TIME),
        }
        await self._send(exchange, value, self._cookie_of(token, int(SESSION_TIME)))

    async def _log_out(self, exchange: Exchange) -> None:
        self._sessions.pop(self._session(exchange), None)
        await self._send(exchange, {"status": "success"}, self._cookie_of("", 0))

    async def _check(self, exchange: Exchange) -> None:
        assert self._login is not None
        value: dict[str, Any] = {"authenticated": False, "expires_at": _NO_TIME}
        if self._session(exchange):
            value = {
                "authenticated": True,
                "username": self._login.name,
                "expires_at": go_time(SESSION_TIME),
            }
        await self._send(exchange, value)

    def _session(self, exchange: Exchange) -> str:
        """The token of the request's session, which lasts longer now; "" without one."""
        for part in (exchange.request.first("cookie") or "").split(";"):
            name, _, token = part.strip().partition("=")
            if name == self._cookie and token in self._sessions:
                if self._sessions[token] > asyncio.get_running_loop().time():
                    self._extend(token)
                    return token
                del self._sessions[token]
        return ""

    def _extend(self, token: str) -> None:
        self._sessions.pop(token, None)
        self._sessions[token] = asyncio.get_running_loop().time() + SESSION_TIME

    def _cookie_of(self, token: str, seconds: int) -> tuple[str, str]:
        secure = "; Secure" if self._tls is not None else ""
        return (
            "Set-Cookie",
            f"{self._cookie}={token}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}",
        )

    # Answers.

    async def _send(self, exchange: Exchange, value: Any, *headers: tuple[str, str]) -> None:
        every = (
            ("Cache-Control", "no-store"),
            ("Content-Type", "application/json"),
            *headers,
            ("X-Content-Type-Options", "nosniff"),
        )
        await exchange.answer(Reply(200, every, json.dumps(value).encode() + b"\n"))

    async def _refuse(
        self, exchange: Exchange, status: int, text: str, *headers: tuple[str, str]
    ) -> None:
        await exchange.answer(text_reply(status, text, *headers))


# Values as Go writes them.


def go_time(seconds: float = 0.0) -> str:
    """The time so many seconds from now."""
    time = datetime.now(UTC) + timedelta(seconds=seconds)
    return time.isoformat(timespec="microseconds").replace("+00:00", "Z")


def go_duration(seconds: float) -> str:
    """A duration of a millisecond or more, like 1h0m5.25s."""
    milliseconds = round(seconds * 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    text = f"{rest / 1000:g}s"
    if minutes:
        hours, minutes = divmod(minutes, 60)
        text = f"{f'{hours}h' if hours else ''}{minutes}m{text}"
    return text
