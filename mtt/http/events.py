"""Server-sent events: an endless answer, for pages that show live state (HTML, 9.2)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing

from mtt.http.exchange import Exchange
from mtt.wire.http1 import Reply

# Seconds without an event until a comment is sent, as the specification advises: proxies close
# silent connections, and a lost client is noticed only when something is sent.
HEARTBEAT = 15.0

_COMMENT = b":\n\n"
_HEADERS = (
    ("Cache-Control", "no-store"),
    ("Content-Type", "text/event-stream"),
    ("X-Accel-Buffering", "no"),  # makes nginx pass on each event at once
)
_LINE_END = re.compile(r"\r\n|\r|\n")


def encode_event(data: str, *, name: str = "") -> bytes:
    """Encode an event; `name` is its type, if any. Raises ValueError for a line break in it."""
    if _LINE_END.search(name):
        raise ValueError(f"{name!r} has a line break")
    lines = [f"event: {name}"] if name else []
    lines += [f"data: {line}" for line in _LINE_END.split(data)]
    return "\n".join([*lines, "", ""]).encode()


async def stream_events(exchange: Exchange, events: AsyncGenerator[bytes, None]) -> None:
    """Answer with `events`, see `encode_event`, until they or the client end.

    Raises NetworkError, and what `events` raises.
    """
    # Otherwise, a page that was closed is only noticed at the second heartbeat. No client of such
    # a stream half-closes.
    exchange.stop_at_end()
    await exchange.stream(Reply(200, _HEADERS), _with_heartbeats(events))


async def _with_heartbeats(events: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(events):
        while True:
            upcoming = asyncio.ensure_future(anext(events, b""))
            try:
                while not (await asyncio.wait([upcoming], timeout=HEARTBEAT))[0]:
                    yield _COMMENT
            finally:
                if not upcoming.done():  # a running generator cannot be closed
                    upcoming.cancel()
                    await asyncio.wait([upcoming])
            event = upcoming.result()
            if not event:
                return
            yield event
