"""The controller: HTTP on a socket of its own, for the operator.

POST to any path is a command, as with the original; GET of `/healthz` and `/metrics` is for those
who watch. Every request has to pass `Access` first.

Many commands may come at the same time: what cannot be done at once waits for its turn. The limits
are on clients that have not made a valid request, and on what is in memory, see `turns`.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from typing import NamedTuple

from mtt.address import peer_name
from mtt.admission import MAX_PENDING, Pending
from mtt.errors import MttError, describe
from mtt.http.access import UNAUTHORIZED, Access
from mtt.layers import linger
from mtt.layers.base import StreamProtocol
from mtt.layers.holding import Holding
from mtt.layers.tls import TlsLayer
from mtt.log import Throttle, logger
from mtt.wire.http1 import REASONS, HttpError, Request
from mtt_mu_server import api
from mtt_mu_server.channel import BodyTooLargeError, Channel
from mtt_mu_server.turns import SMALL, CrowdedError, Turns

# Connections that have not shown yet that they belong here, by a request that passes `Access`. A
# panel's are among them for a moment only, so a hundred of those at a time do not fill this up.
MAX_STRANGERS = MAX_PENDING
# Connections between two requests.
MAX_IDLE = 256

# Seconds from accept, or from the first byte of a further request, to the end of its head.
HEAD_TIMEOUT = 10.0
# For a body, of 2 MiB at most; and for the client to take an answer.
BODY_TIMEOUT = 30.0
# Between requests; the same as for the users' connections.
KEEPALIVE_TIMEOUT = 60.0

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"

TOO_LARGE = 413

_REASONS = REASONS | {
    401: "Unauthorized",
    TOO_LARGE: "Request Entity Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


class Answer(NamedTuple):
    """A response: its body in pieces, and header lines beyond the usual ones."""

    status: int
    body: list[bytes]
    content_type: str = JSON
    headers: tuple[str, ...] = ()

    def head(self, *, http11: bool = True, close: bool) -> bytes:
        """The head of the response, its lines in the order in which Go sends them."""
        lines = [
            f"HTTP/1.{int(http11)} {self.status} {_REASONS[self.status]}",
            *self.headers,
            f"Date: {formatdate(usegmt=True)}",
            f"Content-Length: {sum(map(len, self.body))}",
            f"Content-Type: {self.content_type}",
        ]
        if close and http11:
            lines.append("Connection: close")
        elif not close and not http11:
            lines.append("Connection: keep-alive")
        return "\r\n".join(lines).encode("ascii") + b"\r\n\r\n"


class Controller:
    """Serves the operator's connections; `accept` is the protocol factory for a listener.

    Args:
        access: who may ask at all.
        run: executes a command: from the body of a POST to a status and the answer's body.
        metrics: gives the pieces of the page `/metrics`, and its content type.
        context: called for the TLS context of each connection, None to go without.
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
        self._transports: set[asyncio.Transport] = set()
        self._strangers = Pending(
            MAX_STRANGERS, what="connections to the controller have not made a valid request yet"
        )
        self._idle = Pending(MAX_IDLE, what="connections to the controller are idle")
        self._turns = Turns()
        self._failures = Throttle()

    def accept(self) -> StreamProtocol:
        """The protocol for a new connection."""
        holding = Holding(self._opened)
        if self._context is None:
            return holding
        tls = TlsLayer(holding, self._context(), server_side=True)
        self._admit(tls)

        def failed(error: Exception) -> None:
            self._forget(tls)
            logger.debug("controller: %s: %s", peer_name(tls), describe(error))

        holding.failed = failed
        return tls

    async def close(self) -> None:
        """Cut all connections. A command that has begun is not answered any more."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._turns.close()
        for transport in list(self._transports):
            linger.reset(transport)

    def _opened(self, transport: asyncio.Transport) -> None:
        if self._context is None:
            self._admit(transport)
        task = asyncio.get_running_loop().create_task(self._serve(transport))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _admit(self, transport: asyncio.Transport) -> None:
        self._transports.add(transport)
        self._strangers.add(transport)

    def _forget(self, transport: asyncio.Transport) -> None:
        self._transports.discard(transport)
        self._strangers.discard(transport)
        self._idle.discard(transport)

    async def _serve(self, transport: asyncio.Transport) -> None:
        channel = Channel(transport, lambda: self._forget(transport))
        try:
            await self._requests(channel)
        except HttpError as error:
            self._failed(transport, str(error))
            answer = _error(error.status, error.reason)
            channel.write(answer.head(close=True) + answer.body[0])
        except (MttError, TimeoutError) as error:
            self._failed(transport, describe(error))
        except Exception as error:
            logger.error("controller: internal error: %s", describe(error))
            logger.debug("where it happened:", exc_info=True)

        if not channel.lost:
            linger.close(transport, channel.connection_lost, eof_seen=channel.ended)

    def _failed(self, transport: asyncio.Transport, reason: str) -> None:
        self._failures.warning("controller: %s: %s", peer_name(transport), reason)

    async def _requests(self, channel: Channel) -> None:
        """Serve requests until the connection is to be closed."""
        wait = HEAD_TIMEOUT
        while True:
            try:
                async with asyncio.timeout(wait):
                    if not await channel.begun():
                        return
            except TimeoutError:
                return  # the ordinary end of a connection that is not used
            async with asyncio.timeout(HEAD_TIMEOUT):
                request = await channel.head()
            if not await self._served(channel, request):
                return
            self._idle.add(channel.transport)
            wait = KEEPALIVE_TIMEOUT
            await asyncio.sleep(0)  # others have their turn between requests that came together

    async def _served(self, channel: Channel, request: Request) -> bool:
        """Answer `request`; whether another one may follow."""
        # A body that is not read ends the connection: where the next request begins is unknown.
        close = not request.keep_alive or request.has_body
        refusal = self._access.refusal(request)
        if refusal is not None:
            status, reason = refusal
            self._failed(channel.transport, reason)
            challenge = ("WWW-Authenticate: Bearer",) if status == UNAUTHORIZED else ()
            await self._send(channel, request, _error(status, reason, *challenge), close=True)
            return False
        self._strangers.discard(channel.transport)
        self._idle.discard(channel.transport)
        is_get = request.method in ("GET", "HEAD")
        if is_get and request.path == "/healthz":  # whatever else is going on
            await self._send(channel, request, Answer(200, [b"ok\n"], TEXT), close=close)
            return not close
        large = is_get or request.chunked or request.content_length > SMALL
        try:
            async with self._turns.turn(channel, large=large):
                if is_get and request.path == "/metrics":
                    answer = Answer(200, *await self._metrics())
                elif request.method == "POST":
                    answer = await self._done(channel, request)
                    close = not request.keep_alive or answer.status == TOO_LARGE
                else:
                    answer = _error(405, "method: a command is a POST", "Allow: POST")
                await self._send(channel, request, answer, close=close)
        except CrowdedError as error:
            self._failed(channel.transport, str(error))
            answer = _error(503, str(error), "Retry-After: 1")
            await self._send(channel, request, answer, close=close)
        return not close

    async def _done(self, channel: Channel, request: Request) -> Answer:
        """Do the command of `request`."""
        try:
            async with asyncio.timeout(BODY_TIMEOUT):
                body = await channel.body(request, api.BODY_LIMIT)
        except BodyTooLargeError:
            return _error(TOO_LARGE, f"body: it must be smaller than {api.BODY_LIMIT} bytes")
        status, text = await self._run(body)
        return Answer(status, [text])

    @staticmethod
    async def _send(channel: Channel, request: Request, answer: Answer, *, close: bool) -> None:
        head = answer.head(http11=request.version >= (1, 1), close=close)
        async with asyncio.timeout(BODY_TIMEOUT):
            if request.method == "HEAD":
                channel.write(head)
            elif len(answer.body) == 1:
                channel.write(head + answer.body[0])
            else:
                channel.write(head)
                for piece in answer.body:
                    await channel.sent()
                    channel.write(piece)
            await channel.sent()


def _error(status: int, reason: str, *headers: str) -> Answer:
    return Answer(status, [api.error_answer(reason)], headers=headers)
