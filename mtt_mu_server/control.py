"""The controller: HTTP on a socket of its own, for the operator.

POST to any path is a command, as with the original; GET of `/healthz` and `/metrics` is for those
who watch. Every request has to pass `Access` first.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from typing import NamedTuple

from mtt.errors import MttError, describe
from mtt.http.access import UNAUTHORIZED, Access
from mtt.layers import linger
from mtt.layers.base import StreamProtocol
from mtt.layers.holding import Holding
from mtt.layers.tls import TlsLayer
from mtt.log import logger
from mtt.service import peer_name
from mtt.wire.http1 import REASONS, HttpError, Request
from mtt_mu_server import api
from mtt_mu_server.channel import BodyTooLargeError, Channel

# Panels use one or two. Each may hold a body of 2 MiB, so this bounds our memory. When there are
# more, the oldest that has not shown yet that it belongs here has to go.
MAX_CONNECTIONS = 64

# Seconds from accept, or from the first byte of a further request, to the end of its head.
HEAD_TIMEOUT = 10.0
# For a body, of 2 MiB at most; and for the client to take an answer.
BODY_TIMEOUT = 30.0
# Between requests; the same as for the users' connections.
KEEPALIVE_TIMEOUT = 60.0

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"

_REASONS = REASONS | {
    401: "Unauthorized",
    413: "Request Entity Too Large",
    500: "Internal Server Error",
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
        self._strangers: dict[asyncio.Transport, None] = {}  # no request of theirs has passed

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
        for transport in list(self._transports):
            linger.reset(transport)

    def _opened(self, transport: asyncio.Transport) -> None:
        if self._context is None:
            self._admit(transport)
        task = asyncio.get_running_loop().create_task(self._serve(transport))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _admit(self, transport: asyncio.Transport) -> None:
        if len(self._transports) >= MAX_CONNECTIONS and self._strangers:
            oldest = next(iter(self._strangers))
            logger.warning("controller: more than %d connections", MAX_CONNECTIONS)
            self._forget(oldest)
            linger.reset(oldest)
        self._transports.add(transport)
        self._strangers[transport] = None

    def _forget(self, transport: asyncio.Transport) -> None:
        self._transports.discard(transport)
        self._strangers.pop(transport, None)

    async def _serve(self, transport: asyncio.Transport) -> None:
        channel = Channel(transport, lambda: self._forget(transport))
        try:
            await self._requests(channel)
        except HttpError as error:
            logger.warning("controller: %s: %s", peer_name(transport), error)
            answer = _error(error.status, error.reason)
            transport.write(answer.head(close=True) + answer.body[0])
        except (MttError, TimeoutError) as error:
            reason = "timed out" if isinstance(error, TimeoutError) else error
            logger.warning("controller: %s: %s", peer_name(transport), reason)
        except Exception as error:
            logger.error("controller: internal error: %s", describe(error))
            logger.debug("where it happened:", exc_info=True)

        if not channel.lost:
            linger.close(transport, channel.connection_lost, eof_seen=channel.ended)

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
            answer, close = await self._answered(channel, request)
            async with asyncio.timeout(BODY_TIMEOUT):
                await self._send(channel, request, answer, close=close)
            if close:
                return
            wait = KEEPALIVE_TIMEOUT

    async def _answered(self, channel: Channel, request: Request) -> tuple[Answer, bool]:
        """The answer to `request`, and whether it is the last one."""
        close = not request.keep_alive
        # A body that is not read ends the connection: where the next request begins is unknown.
        unread = close or request.has_body
        refusal = self._access.refusal(request)
        if refusal is not None:
            status, reason = refusal
            logger.warning("controller: %s: %s", peer_name(channel.transport), reason)
            challenge = ("WWW-Authenticate: Bearer",) if status == UNAUTHORIZED else ()
            return _error(status, reason, *challenge), True
        self._strangers.pop(channel.transport, None)
        if request.method in ("GET", "HEAD"):
            if request.path == "/healthz":
                return Answer(200, [b"ok\n"], TEXT), unread
            if request.path == "/metrics":
                pieces, content_type = await self._metrics()
                return Answer(200, pieces, content_type), unread
        if request.method != "POST":
            return _error(405, "method: a command is a POST", "Allow: POST"), unread
        try:
            async with asyncio.timeout(BODY_TIMEOUT):
                body = await channel.body(request, api.BODY_LIMIT)
        except BodyTooLargeError:
            return _error(413, f"body: it must be smaller than {api.BODY_LIMIT} bytes"), True
        status, text = await self._run(body)
        return Answer(status, [text]), close

    @staticmethod
    async def _send(channel: Channel, request: Request, answer: Answer, *, close: bool) -> None:
        head = answer.head(http11=request.version >= (1, 1), close=close)
        if request.method == "HEAD":
            channel.transport.write(head)
        elif len(answer.body) == 1:
            channel.transport.write(head + answer.body[0])
        else:
            channel.transport.write(head)
            for piece in answer.body:
                await channel.sent()
                channel.transport.write(piece)
        await channel.sent()


def _error(status: int, reason: str, *headers: str) -> Answer:
    return Answer(status, [api.error_answer(reason)], headers=headers)
