"""One side of a session with a Go program of AnyProxy, over a fake connection."""

from __future__ import annotations

from typing import Any

from mtt.layers.anyproxy import GoSession
from mtt.layers.anyproxy_stream import GoStream
from mtt.layers.parked import hand_over
from mtt.outcome import Outcome
from mtt.wire.agent import TCP, Head
from mtt.wire.anyproxy import Connect, ConnectResponse, Message, StreamData, parse
from mtt.wire.websocket import BINARY, NO_MASK, Decoder, frame
from tests.support.transports import FakeLayer, Recorder, turns

HEAD = Head(TCP, "nas.example", 22)
ID = b"dc5rm3hksdufcocjla10"


class GoSide:
    """A session of ours, and everything that happened to it."""

    def __init__(self, *, is_gateway: bool, **options: Any) -> None:
        self.is_gateway = is_gateway
        self.served: list[tuple[GoStream, Head, Any]] = []
        self.lost: list[Exception | None] = []
        self.session = GoSession(
            serve=None if is_gateway else lambda *args: self.served.append(args),
            on_lost=lambda _, error: self.lost.append(error),
            **options,
        )
        self.lower = FakeLayer()
        layer = self.session.message_layer(client=not is_gateway)
        self.lower.upper = layer
        layer.connection_made(self.lower)
        self._decoder = Decoder(masked=not is_gateway)

    def feed(self, *messages: Message) -> None:
        self.feed_bytes(*(message.encode() for message in messages))

    def feed_bytes(self, *messages: bytes) -> None:
        mask = NO_MASK if self.is_gateway else None
        self.lower.upper.data_received(b"".join(frame(BINARY, each, mask) for each in messages))

    def said(self) -> list[Message]:
        """The messages that the session has sent since the last time."""
        events = self._decoder.feed(self.lower.take())
        return [parse(bytes(payload)) for opcode, payload in events if opcode == BINARY]

    # A gateway's.

    def opening(self, head: Head = HEAD) -> tuple[Recorder, GoStream]:
        """A stream that the agent has not answered."""
        upper = Recorder()
        stream = self.session.open_stream(upper, head)
        return upper, stream

    def opened(self, head: Head = HEAD) -> tuple[Recorder, GoStream]:
        upper, stream = self.opening(head)
        self.feed(ConnectResponse(stream.wire_id, True))
        assert upper.transport is stream
        self.said()
        return upper, stream

    # An agent's.

    def accepted(self, address: str = "nas.example:22", *, network: str = "tcp") -> GoStream:
        """A stream of the gateway that has not been answered."""
        self.feed(Connect(ID, network, address))
        return self.served[-1][0]

    def connected(self) -> tuple[Recorder, GoStream]:
        upper, stream = Recorder(), self.accepted()
        stream.answer(Outcome.SUCCEEDED)
        hand_over(stream, upper)
        self.said()
        return upper, stream

    async def over(self) -> None:
        self.session.abort()
        await turns()


def data_of(messages: list[Message]) -> bytes:
    """The data in messages that must all be DATA."""
    assert all(isinstance(message, StreamData) for message in messages)
    return b"".join(bytes(message.data) for message in messages if isinstance(message, StreamData))
