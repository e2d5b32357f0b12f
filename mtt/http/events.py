"""Server-sent events: an answer without end, for pages that show what happens (HTML, 9.2)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing

from mtt.http.exchange import Exchange
from mtt.wire.http1 import Reply

# Seconds without an event until a comment is sent, as the specification advises: proxies end what
# is silent for longer, and a client that is gone shows only when something is sent.
HEARTBEAT = 15.0

_COMMENT = b":\n\n"
_HEADERS = (
    ("Cache-Control", "no-store"),
    ("Content-Type", "text/event-stream"),
    ("X-Accel-Buffering", "no"),  # an nginx in front passes on each event as it comes
)
_LINE_END = re.compile(r"\r\n|\r|\n")


def encode_event(data: str, *, name: str = "") -> bytes:
    """An event as it is sent; `name` is its type, if it has one.

    Raises ValueError for a name with a line break.
    """
    if _LINE_END.search(name):
        raise ValueError(f"{name!r} has a line break")
    lines = [f"event: {name}"] if name else []
    lines += [f"data: {line}" for line in _LINE_END.split(data)]
    return "\n".join([*lines, "", ""]).encode()


async def stream_events(exchange: Exchange, events: AsyncGenerator[bytes, None]) -> None:
    """Answer with `events`, see `encode_event`, until they or the client end.

    Raises NetworkError, and what `events` raises.
    """
    await exchange.stream(Reply(200, _HEADERS), _with_heartbeats(events))


async def _with_heartbeats(events: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(events):
        while True:
            upcoming = asyncio.ensure_future(anext(events, b""))
            try:
                while not (await asyncio.wait([upcoming], timeout=HEARTBEAT))[0]:
                    yield _COMMENT
            finally:
                if not upcoming.done():  # else the generator could not be closed
                    upcoming.cancel()
                    await asyncio.wait([upcoming])
            event = upcoming.result()
            if not event:
                return
            yield event
