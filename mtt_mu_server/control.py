"""The controller: an HTTP server on its own socket, for the operator.

POST to any path is a command, as with the original, except below /api/, where pages and panels have
their own API (`user_api`). GET /healthz and GET /metrics are for monitoring. Every request must
pass the access rules first.

Commands may arrive concurrently; those that cannot run at once wait. The limits are on clients that
have not made a valid request, and on memory, see `request_slots`.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

from mtt.http.access import AccessRules
from mtt.http.exchange import Exchange, Handler
from mtt.http.listener import HttpListener
from mtt.net.admission import MAX_PENDING, Pending
from mtt.wire.http1 import Reply
from mtt_mu_server import api
from mtt_mu_server.metrics_server import MakePage, answer_page
from mtt_mu_server.request_slots import SMALL, CrowdedError, RequestSlots

if TYPE_CHECKING:
    from mtt_mu_server.live_events import LiveEvents
    from mtt_mu_server.user_api import UserApi

# Connections between two requests.
MAX_IDLE = 256

JSON = "application/json"


class Controller(HttpListener):
    """Serves the operator's connections.

    Args:
        access: decides which requests are allowed.
        run: executes a command: takes the body of a POST, returns a status and the answer's body.
        make_events: creates the event stream, for the first viewer.
        make_api: creates the executor of requests below /api/, at the first one.
        metrics: returns the pieces of the page `/metrics` and its content type.
        context: called for the TLS context of each connection; None for plain HTTP.
    """

    def __init__(
        self,
        *,
        access: AccessRules,
        run: Callable[[bytes], Awaitable[tuple[int, bytes]]],
        make_events: Callable[[], LiveEvents],
        make_api: Callable[[], UserApi],
        metrics: MakePage,
        context: Callable[[], ssl.SSLContext] | None,
    ) -> None:
        super().__init__(
            {
                "/metrics": partial(self._in_slot, self._answer_metrics),
                "/api/events": self._answer_events,  # endless, so it gets no slot
            },
            partial(self._in_slot, self._answer_default),
            access=access,
            # A panel's connections are pending only briefly, so a hundred at a time fit.
            pending=Pending(
                MAX_PENDING,
                what="connections to the controller have not made a valid request yet",
            ),
            idle=Pending(MAX_IDLE, what="connections to the controller are idle"),
            name="controller",
            error=_error,
            context=context,
        )
        self._run = run
        self._make_events = make_events
        self._events: LiveEvents | None = None
        self._make_api = make_api
        self._api: UserApi | None = None
        self._metrics = metrics
        self._slots = RequestSlots()

    async def close(self) -> None:
        await super().close()
        self._slots.close()

    async def _in_slot(self, handler: Handler, exchange: Exchange) -> None:
        """Answer a request that may take long, when there is a slot for it."""
        request = exchange.request
        is_large = request.chunked or request.content_length > SMALL
        large = is_large or request.method in ("GET", "HEAD")
        try:
            async with self._slots.slot(exchange, large=large):
                await handler(exchange)
        except CrowdedError as error:
            self.report(exchange.transport, error)
            await exchange.answer(_error(503, str(error), ("Retry-After", "1")))

    async def _answer_default(self, exchange: Exchange) -> None:
        if exchange.request.path.startswith("/api/"):
            await self._answer_api(exchange)
        else:
            await self._answer_command(exchange)

    async def _answer_api(self, exchange: Exchange) -> None:
        if self._api is None:
            self._api = self._make_api()
        request = exchange.request
        methods = self._api.methods(request.path)
        if request.method not in methods:
            if not methods:
                reply = _error(404, "path: there is nothing here; see docs/api.md")
            else:
                allowed = ", ".join(methods)
                reply = _error(405, f"method: only {allowed} here", ("Allow", allowed))
            await exchange.answer(reply)
            return
        body = await exchange.body(self._api.body_limit)
        exchange.keeps_on = True  # as for commands
        status, text = await self._api.run(request.method, request.path, request.query, body)
        headers = (("Cache-Control", "no-store"),)  # answers may contain paths
        await exchange.answer(Reply(status, headers, text, JSON))

    async def _answer_events(self, exchange: Exchange) -> None:
        if self._events is None:
            self._events = self._make_events()
        if self._events.has_room:
            await self._events.serve(exchange)
        else:
            reason = "too many viewers of events; close some"
            await exchange.answer(_error(503, reason, ("Retry-After", "10")))

    async def _answer_command(self, exchange: Exchange) -> None:
        if exchange.request.method != "POST":
            await exchange.answer(_error(405, "method: commands must use POST", ("Allow", "POST")))
            return
        body = await exchange.body(api.BODY_LIMIT)
        exchange.keeps_on = True  # finish the command even if the client disconnects
        status, text = await self._run(body)
        await exchange.answer(Reply(status, body=text, content_type=JSON))

    async def _answer_metrics(self, exchange: Exchange) -> None:
        await answer_page(exchange, self._metrics)


def _error(status: int, reason: str, *headers: tuple[str, str]) -> Reply:
    return Reply(status, headers, api.error_answer(reason), JSON)
