"""The controller: an HTTP server on its own socket, for the operator.

POST to any path is a command, as with the original. GET /healthz and GET /metrics are for
monitoring. Every request must pass `Access` first.

Commands may arrive concurrently; those that cannot run at once wait. The limits are on clients that
have not made a valid request, and on memory, see `request_slots`.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable

from mtt.address import peer_name
from mtt.errors import MttError, describe
from mtt.http.access import UNAUTHORIZED, Access
from mtt.http.exchange import Exchange
from mtt.http.limits import OPERATORS
from mtt.http.server import HttpServer
from mtt.layers.base import StreamProtocol, StreamTransport
from mtt.layers.parked import Parked, hand_over
from mtt.layers.tls import TlsLayer
from mtt.log import Throttle, logger
from mtt.net.admission import MAX_PENDING, Pending
from mtt.wire.http1 import Reply
from mtt_mu_server import api
from mtt_mu_server.request_slots import SMALL, CrowdedError, RequestSlots

# Connections without a request that has passed `Access` yet. A panel's connections are in this
# state only briefly, so a hundred at a time do not reach the limit.
MAX_STRANGERS = MAX_PENDING
# Connections between two requests.
MAX_IDLE = 256

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"


class Controller:
    """Serves the operator's connections; `accept` is the protocol factory for a listener.

    Args:
        access: decides which requests are allowed.
        run: executes a command: takes the body of a POST, returns a status and the answer's body.
        metrics: returns the pieces of the page `/metrics` and its content type.
        context: called for the TLS context of each connection; None for plain HTTP.
    """

    def __init__(
        self,
        *,
        access: Access,
        run: Callable[[bytes], Awaitable[tuple[int, bytes]]],
        metrics: Callable[[], Awaitable[tuple[list[bytes], str]]],
        context: Callable[[], ssl.SSLContext] | None,
    ) -> None:
        self._access = access
        self._run = run
        self._metrics = metrics
        self._context = context
        self._tasks: set[asyncio.Task[None]] = set()
        self._transports: set[StreamTransport] = set()
        self._strangers = Pending(
            MAX_STRANGERS, what="connections to the controller have not made a valid request yet"
        )
        self._idle = Pending(MAX_IDLE, what="connections to the controller are idle")
        self._slots = RequestSlots()
        self._failures = Throttle()

    def accept(self) -> StreamProtocol:
        """The protocol for a new connection."""
        parked = Parked(self._opened)
        if self._context is None:
            return parked
        tls = TlsLayer(parked, self._context(), server_side=True)
        self._admit(tls)

        def failed(error: Exception) -> None:
            self._forget(tls)
            logger.debug("controller: %s: %s", peer_name(tls), describe(error))

        parked.failed = failed
        return tls

    async def close(self) -> None:
        """Cut all connections. Commands in progress get no answer."""
        for task in self._tasks:
            task.cancel()
        for transport in list(self._transports):
            transport.abort()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._slots.close()

    def _opened(self, transport: StreamTransport) -> None:
        if self._context is None:
            self._admit(transport)
        http = HttpServer(
            lambda request: self._serve,
            error_reply=lambda error: _error(error.status, error.reason),
            on_failure=lambda error: self._failed(transport, error),
            on_lost=lambda: self._forget(transport),
            limits=OPERATORS,
            tasks=self._tasks,
        )
        hand_over(transport, http)

    def _admit(self, transport: StreamTransport) -> None:
        self._transports.add(transport)
        self._strangers.add(transport)

    def _forget(self, transport: StreamTransport) -> None:
        self._transports.discard(transport)
        self._strangers.discard(transport)
        self._idle.discard(transport)

    def _failed(self, transport: StreamTransport, error: Exception) -> None:
        if isinstance(error, MttError):
            self._failures.warning("controller: %s: %s", peer_name(transport), describe(error))
        else:
            logger.error("controller: internal error: %s", describe(error))
            logger.debug("where it happened:", exc_info=error)

    async def _serve(self, exchange: Exchange) -> None:
        """Answer a request."""
        request, transport = exchange.request, exchange.transport
        refusal = self._access.refusal(request)
        if refusal is not None:
            status, reason = refusal
            self._failures.warning("controller: %s: %s", peer_name(transport), reason)
            challenge = (("WWW-Authenticate", "Bearer"),) if status == UNAUTHORIZED else ()
            await exchange.answer(_error(status, reason, *challenge), close=True)
            return
        self._strangers.discard(transport)
        self._idle.discard(transport)
        is_get = request.method in ("GET", "HEAD")
        if is_get and request.path == "/healthz":  # answered without waiting for a slot
            await exchange.answer(Reply(200, body=b"ok\n", content_type=TEXT))
        else:
            large = is_get or request.chunked or request.content_length > SMALL
            try:
                async with self._slots.slot(exchange, large=large):
                    await self._done(exchange)
            except CrowdedError as error:
                self._failed(transport, error)
                await exchange.answer(_error(503, str(error), ("Retry-After", "1")))
        if not exchange.closes:
            self._idle.add(transport)

    async def _done(self, exchange: Exchange) -> None:
        """Execute and answer requests that may take long."""
        request = exchange.request
        if request.method == "POST":
            body = await exchange.body(api.BODY_LIMIT)
            exchange.keeps_on = True  # finish the command even if the client disconnects
            status, text = await self._run(body)
            await exchange.answer(Reply(status, body=text, content_type=JSON))
        elif request.method in ("GET", "HEAD") and request.path == "/metrics":
            pieces, kind = await self._metrics()
            length = sum(map(len, pieces))
            await exchange.stream(Reply(200, content_type=kind), _each(pieces), length)
        else:
            await exchange.answer(_error(405, "method: a command is a POST", ("Allow", "POST")))


async def _each(pieces: list[bytes]) -> AsyncGenerator[bytes, None]:
    for piece in pieces:
        yield piece


def _error(status: int, reason: str, *headers: tuple[str, str]) -> Reply:
    return Reply(status, headers, api.error_answer(reason), JSON)
