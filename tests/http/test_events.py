"""Server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from mtt.http import events
from mtt.http.events import encode_event, stream_events
from mtt.http.exchange import Exchange
from tests.http.handled import GET, Client, pieces
from tests.support.garbage import collector_off
from tests.support.transports import turns


def test_events_as_they_are_sent() -> None:
    assert encode_event("a") == b"data: a\n\n"
    assert encode_event("") == b"data: \n\n"
    assert encode_event("a\nb\r\nc\rd", name="x") == (
        b"event: x\ndata: a\ndata: b\ndata: c\ndata: d\n\n"
    )
    assert encode_event("\u20ac\u2028") == b"data: \xe2\x82\xac\xe2\x80\xa8\n\n"
    with pytest.raises(ValueError, match="line break"):
        encode_event("a", name="x\ndata: y")


async def test_events_come_at_once_and_silence_is_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "HEARTBEAT", 0.01)
    news: asyncio.Queue[str] = asyncio.Queue()
    is_closed = False

    async def follow() -> AsyncGenerator[bytes, None]:
        nonlocal is_closed
        try:
            while True:
                yield encode_event(await news.get())
        finally:
            is_closed = True

    async def stream(exchange: Exchange) -> None:
        await stream_events(exchange, follow())

    with collector_off() as left:
        client = Client(stream)
        head = await client.send(GET)
        assert b"\r\nContent-Type: text/event-stream\r\n" in head
        for text in ("one", "two"):
            while b":\n\n" not in client.transport.sent:
                await asyncio.sleep(0.001)
            news.put_nowait(text)
            await turns()
            assert encode_event(text) in client.transport.take()
        assert not is_closed
        await client.leave()
        assert is_closed
        client.transport.set_protocol(None)  # as transports of sockets do
        del client
    assert not left


async def test_events_may_end() -> None:
    async def stream(exchange: Exchange) -> None:
        await stream_events(exchange, pieces(encode_event("last")))

    client = Client(stream)
    assert (await client.send(GET)).endswith(b"\r\n\r\nc\r\ndata: last\n\n\r\n0\r\n\r\n")
    assert not client.transport.closing
    await client.leave()


async def test_stream_ends_when_the_client_ends_its_direction() -> None:
    is_closed = False

    async def follow() -> AsyncGenerator[bytes, None]:
        nonlocal is_closed
        try:
            yield encode_event("one")
            await asyncio.Event().wait()
        finally:
            is_closed = True

    async def stream(exchange: Exchange) -> None:
        await stream_events(exchange, follow())

    client = Client(stream)
    assert encode_event("one") in await client.send(GET)
    client.server.eof_received()
    await turns()
    assert is_closed
    assert client.transport.aborted


async def test_client_that_has_ended_gets_no_stream() -> None:
    async def stream(exchange: Exchange) -> None:
        await stream_events(exchange, pieces(encode_event("one")))

    client = Client(stream)
    client.server.data_received(GET)
    client.server.eof_received()  # before the handler runs
    await turns()
    assert client.transport.take() == b""
    assert client.is_ended
    assert client.failures == ["the client disconnected before it was answered"]
