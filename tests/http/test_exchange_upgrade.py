"""Handlers that switch to WebSocket once they have decided that they want to."""

from __future__ import annotations

import asyncio

from mtt.errors import NetworkError
from mtt.http.exchange import Exchange
from mtt.wire.http1 import text_reply
from mtt.wire.upgrade import Upgrade, UpgradeRefused, accept_key
from tests.http.handled import GET, Client
from tests.support.transports import Recorder, turns

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
HEAD = (
    "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    f"Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: x, y\r\n\r\n"
).encode()


class Gate:
    """A handler that switches once the test lets it."""

    def __init__(self, *, opens: bool = True) -> None:
        self.opened = asyncio.Event()
        self.upgrades: list[Upgrade] = []
        self.errors: list[str] = []
        self.upper = Recorder()
        if opens:
            self.opened.set()

    async def __call__(self, exchange: Exchange) -> None:
        await self.opened.wait()
        try:
            self.upgrades.append(exchange.upgrade(("y",)))
        except UpgradeRefused as refused:
            self.errors.append(str(refused))
            await exchange.answer(refused.reply)
        except NetworkError as error:
            self.errors.append(str(error))
            raise
        else:
            transport = exchange.transport
            transport.set_protocol(self.upper)
            transport.resume_reading()
            self.upper.connection_made(transport)


async def test_handler_switches_after_other_work() -> None:
    gate = Gate(opens=False)
    client = Client(gate)
    assert await client.send(HEAD) == b""
    gate.opened.set()
    await turns()
    answer = client.transport.take()
    assert answer.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
    assert f"Sec-WebSocket-Accept: {accept_key(KEY)}\r\n".encode() in answer
    assert b"Sec-WebSocket-Protocol: y\r\n" in answer
    assert gate.upgrades == [Upgrade(KEY, "y")]
    gate.upper.data_received(b"frames")
    assert client.server._exchange is None
    assert client.server._timer is None
    assert not client.tasks
    assert not client.failures


async def test_request_that_is_no_handshake_gets_an_ordinary_answer() -> None:
    gate = Gate()
    client = Client(gate)
    answer = await client.send(GET)
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert gate.errors == [
        "WebSocket upgrade refused: no token `upgrade` in the Connection header"
    ]
    answer = await client.send(HEAD)  # the connection goes on
    assert answer.startswith(b"HTTP/1.1 101 ")


async def test_bytes_before_the_101_are_refused() -> None:
    gate = Gate(opens=False)
    client = Client(gate)
    await client.send(HEAD, b"\x81")
    gate.opened.set()
    answer = await client.send()
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert gate.errors == ["WebSocket upgrade refused: bytes follow the request"]
    await client.leave()


async def test_client_that_has_ended_gets_no_websocket() -> None:
    gate = Gate(opens=False)
    client = Client(gate)
    await client.send(HEAD)
    client.server.eof_received()
    gate.opened.set()
    await turns()
    assert gate.errors == ["the client disconnected before it was answered"]
    assert b"101" not in client.transport.take()


async def test_handler_may_refuse_after_other_work() -> None:
    async def refuse(exchange: Exchange) -> None:
        await exchange.answer(text_reply(403, "wrong password"), close=True)

    client = Client(refuse)
    answer = await client.send(HEAD)
    assert answer.startswith(b"HTTP/1.1 403 Forbidden\r\n")
    assert client.is_ended
