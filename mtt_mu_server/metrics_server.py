"""The HTTP server of -metrics, with the metrics of users, whose page may be long."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable

from mtt.address import Endpoint
from mtt.http.exchange import Exchange
from mtt.observe.server import MetricsServer
from mtt.wire.http1 import Reply, text_reply
from mtt_mu_server.request_slots import CrowdedError, RequestSlots

# Makes the pieces of the page, and its content type.
MakePage = Callable[[], Awaitable[tuple[list[bytes], str]]]


class UserMetricsServer(MetricsServer):
    """Serves the page of `make` at /metrics, to a few clients at a time."""

    def __init__(self, make: MakePage, endpoint: Endpoint | None, unix_path: str) -> None:
        super().__init__(str, endpoint, unix_path)
        self._make = make
        self._slots = RequestSlots()

    async def close(self) -> None:
        await super().close()
        self._slots.close()

    async def answer(self, exchange: Exchange) -> None:
        try:
            async with self._slots.slot(exchange, large=True):
                await answer_page(exchange, self._make)
        except CrowdedError as error:
            await exchange.answer(text_reply(503, str(error), ("Retry-After", "1")))


async def answer_page(exchange: Exchange, make: MakePage) -> None:
    """Answer with the page of `make`."""
    pieces, kind = await make()
    length = sum(map(len, pieces))
    await exchange.stream(Reply(200, content_type=kind), _each(pieces), length)


async def _each(pieces: list[bytes]) -> AsyncGenerator[bytes, None]:
    for piece in pieces:
        yield piece
