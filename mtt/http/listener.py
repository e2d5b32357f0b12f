"""HTTP on a socket for operators: metrics, liveness, the controller, pages.

    accept -> TLS, if any -> request -> access rules -> handler

A connection counts as pending until it makes an allowed request, then as idle between requests.
Both numbers are limited; above a limit, the oldest is cut. While a handler works on its request, a
connection counts as neither: handlers limit themselves.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from mtt.address import Endpoint, peer_name
from mtt.errors import MttError, describe
from mtt.http.access import AccessRules
from mtt.http.exchange import Exchange, Handler
from mtt.http.limits import OPERATORS
from mtt.http.server import HttpServer
from mtt.layers.base import StreamProtocol, StreamTransport
from mtt.layers.parked import Parked, hand_over
from mtt.layers.tls import TlsLayer
from mtt.log import Throttle, logger
from mtt.net.admission import Pending
from mtt.net.listen import Listener, bind
from mtt.net.resolve import Resolver
from mtt.wire.http1 import Reply, text_reply


async def healthy(exchange: Exchange) -> None:
    """The handler of /healthz: a process that answers is alive."""
    await exchange.answer(text_reply(200, "ok"))


class HttpListener:
    """Serves HTTP on the sockets of one address, from `start()` to `close()`.

    Args:
        routes: handlers of GET and HEAD by path, besides that of /healthz.
        default: the handler of all other requests.
        pending: holds connections without an allowed request.
        idle: holds connections between two requests; None to hold all in `pending` to their end.
        name: starts the log lines about failures.
        quiet: log no failures that clients cause.
        error: makes the reply for a status, a reason and headers; None for Go's texts.
        context: returns the TLS context of a new connection; None for plain HTTP.
    """

    def __init__(
        self,
        routes: Mapping[str, Handler],
        default: Handler,
        *,
        access: AccessRules,
        pending: Pending,
        idle: Pending | None = None,
        name: str,
        quiet: bool = False,
        error: Callable[..., Reply] | None = None,
        context: Callable[[], ssl.SSLContext] | None = None,
    ) -> None:
        self._routes = {"/healthz": healthy, **routes}
        self._default = default
        self._access = access
        self._pending = pending
        self._idle = idle
        self._name = name
        self._quiet = quiet
        self._error = error
        self._context = context
        self._listener: Listener | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._transports: set[StreamTransport] = set()
        self._failures = Throttle()

    @property
    def addresses(self) -> list[str]:
        """Listening addresses, with the actual port if port 0 was requested."""
        return self._listener.addresses if self._listener is not None else []

    async def start(
        self,
        endpoint: Endpoint | None,
        unix_path: str,
        resolver: Resolver,
        descriptors: Iterable[int] = (),
    ) -> None:
        """Listen, see `mtt.net.listen.bind`. Raises StartError if that fails."""
        self._listener = await bind(
            endpoint, unix_path, resolver=resolver, descriptors=descriptors, private=True
        )
        self._listener.serve(self._accept, use_reserve=True)

    def cleanup(self) -> None:
        """Stop listening."""
        if self._listener is not None:
            self._listener.close()

    async def close(self) -> None:
        """Stop listening and cut all connections. Requests in progress get no answer."""
        self.cleanup()
        for task in self._tasks:
            task.cancel()
        for transport in list(self._transports):
            transport.abort()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def report(self, transport: StreamTransport, error: Exception) -> None:
        """Log why a request of this connection failed."""
        if isinstance(error, MttError):
            if not self._quiet:
                peer = peer_name(transport)
                self._failures.warning("%s: %s: %s", self._name, peer, describe(error))
        else:
            logger.error("%s: internal error: %s", self._name, describe(error))
            logger.debug("where it happened:", exc_info=error)

    def _accept(self) -> StreamProtocol:
        parked = Parked(self._opened)
        if self._context is None:
            return parked
        tls = TlsLayer(parked, self._context(), server_side=True)
        self._admit(tls)
        parked.failed = partial(self._handshake_failed, tls)
        return tls

    def _handshake_failed(self, tls: TlsLayer, error: Exception) -> None:
        self._forget(tls)
        logger.debug("%s: %s: %s", self._name, peer_name(tls), describe(error))

    def _opened(self, transport: StreamTransport) -> None:
        if self._context is None:
            self._admit(transport)
        http = HttpServer(
            lambda request: self._serve,
            error_reply=self._error,
            on_failure=self.report,
            on_lost=self._forget,
            limits=OPERATORS,
            tasks=self._tasks,
        )
        hand_over(transport, http)

    def _admit(self, transport: StreamTransport) -> None:
        self._transports.add(transport)
        self._pending.add(transport)

    def _forget(self, transport: StreamTransport) -> None:
        self._transports.discard(transport)
        self._pending.discard(transport)
        if self._idle is not None:
            self._idle.discard(transport)

    async def _serve(self, exchange: Exchange) -> None:
        request, transport = exchange.request, exchange.transport
        refusal = self._access.refusal(request)
        if refusal is not None:
            self.report(transport, MttError(refusal[1]))
            await exchange.answer((self._error or text_reply)(*refusal), close=True)
            return
        is_get = request.method in ("GET", "HEAD")
        handler = self._routes.get(request.path, self._default) if is_get else self._default
        if self._idle is None:
            await handler(exchange)
            return
        self._pending.discard(transport)
        self._idle.discard(transport)
        await handler(exchange)
        if not exchange.closes:
            self._idle.add(transport)
