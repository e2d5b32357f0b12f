"""Our side in recorded sessions of the Go programs: it says what the Go program said."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mtt.layers import anyproxy
from mtt.layers.anyproxy_stream import GoStream
from mtt.layers.parked import hand_over
from mtt.outcome import Outcome
from mtt.wire import agent
from mtt.wire.agent import Head
from mtt.wire.anyproxy import (
    Close,
    Connect,
    ConnectResponse,
    Message,
    PortForward,
    PortForwardResponse,
    StreamData,
    outcome_of,
    parse,
    split_address,
)
from mtt.wire.websocket import BINARY, PONG, Decoder
from tests.layers.anyproxy_side import GoSide
from tests.support.transports import Recorder, turns
from tests.support.vectors import names, vector

# The refusals are several connections, and have tests of their own.
RECORDINGS = [
    name
    for name in names("p-anyproxy-*")
    if name not in ("p-anyproxy-host-patterns", "p-anyproxy-rejections")
]
NETWORKS = {"tcp": agent.TCP, "udp": agent.UDP}


def conversation(name: str) -> Iterator[tuple[str, bytes, Message | None]]:
    """For each frame its direction, the frame, and the message that ends with it."""
    for event in vector(name)[2:]:
        if event["hex"]:
            message = event.get("message")
            yield (
                event["dir"], bytes.fromhex(event["hex"]),
                None if message is None else parse(bytes.fromhex(message)),
            )  # fmt: skip


def merged(messages: list[Message]) -> list[Message]:
    """The messages; neighbouring data of a stream is joined."""
    out: list[Message] = []
    for message in messages:
        last = out[-1] if out else None
        if not isinstance(message, StreamData):
            out.append(message)
        elif isinstance(last, StreamData) and last.id == message.id:
            out[-1] = StreamData(last.id, bytes(last.data) + bytes(message.data))
        else:
            out.append(StreamData(message.id, bytes(message.data)))
    return out


def data_of(name: str, direction: str) -> bytes:
    return b"".join(
        bytes(message.data)
        for said_by, _, message in conversation(name)
        if said_by == direction and isinstance(message, StreamData)
    )


class User:
    """A user of the gateway, as recorded; what it sends waits for the agent's answer."""

    def __init__(self, gateway: GoSide, message: Connect) -> None:
        target = split_address(message.address)
        assert target is not None
        self.upper, self.stream = gateway.opening(Head(NETWORKS[message.network], *target))
        self.sent = b""
        self.has_left = False

    def go_on(self) -> None:
        if self.upper.transport is not None:
            self.stream.write(self.sent)
            self.sent = b""
            if self.has_left:
                self.stream.close()


@pytest.mark.parametrize("name", RECORDINGS)
async def test_our_gateway_says_what_was_recorded(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = GoSide(is_gateway=True, on_ports=lambda *_: None)
    users: dict[bytes, User] = {}
    said: list[Message] = []
    expected: list[Message] = []
    for direction, frame, message in conversation(name):
        if direction == "c2s":
            gateway.lower.upper.data_received(frame)
        elif message is not None:
            expected.append(message)
            if isinstance(message, Connect):
                monkeypatch.setattr(anyproxy, "new_id", lambda _, made=message.id: made)
                users[message.id] = User(gateway, message)
            elif isinstance(message, StreamData):
                users[message.id].sent += bytes(message.data)
            elif isinstance(message, Close):
                users[message.id].has_left = True
            elif isinstance(message, PortForwardResponse):
                gateway.session.answer_ports(message)
        for user in users.values():
            user.go_on()
        said += gateway.said()
    await turns()
    assert merged(said) == merged(expected)
    assert b"".join(bytes(user.upper.data) for user in users.values()) == data_of(name, "c2s")
    assert not gateway.lost
    await gateway.over()


@pytest.mark.parametrize("name", RECORDINGS)
async def test_our_agent_says_what_was_recorded(name: str) -> None:
    client = GoSide(is_gateway=False)
    uppers: list[Recorder] = []
    said: list[Message] = []
    expected: list[Message] = []

    def stream() -> GoStream:
        return client.served[-1][0]

    for direction, frame, message in conversation(name):
        if direction == "s2c":
            client.lower.upper.data_received(frame)
        elif message is not None:
            expected.append(message)
            if isinstance(message, PortForward):
                client.session.ask_ports(message.client_id, message.ports)
            elif isinstance(message, ConnectResponse) and message.ok:
                stream().answer(Outcome.SUCCEEDED)
                uppers.append(Recorder())
                hand_over(stream(), uppers[-1])
            elif isinstance(message, ConnectResponse):
                stream().answer(outcome_of(message.error))
                stream().close()
            elif isinstance(message, StreamData):
                stream().write(bytes(message.data))
            elif isinstance(message, Close):
                stream().close()
        await turns()
        said += client.said()
    assert merged(said) == merged(expected)
    assert b"".join(bytes(upper.data) for upper in uppers) == data_of(name, "s2c")
    assert not client.lost
    await client.over()


@pytest.mark.parametrize("is_gateway", [True, False])
async def test_recorded_pings_are_answered(is_gateway: bool) -> None:
    side = GoSide(is_gateway=is_gateway)
    events: list[tuple[int, bytes]] = []
    for direction, frame, _ in conversation("p-anyproxy-ping"):
        if (direction == "c2s") is is_gateway:
            side.lower.upper.data_received(frame)
            decoded = Decoder(masked=not is_gateway).feed(side.lower.take())
            events += [(opcode, bytes(payload)) for opcode, payload in decoded]
    assert events == [(PONG, b"")] * 2
    assert BINARY not in dict(events)
    await side.over()


async def test_recorded_refusal_ends_our_agent() -> None:
    (refusal,) = [
        bytes.fromhex(event["hex"])
        for event in vector("p-anyproxy-rejections")
        if event["note"].startswith("connection 4") and "ERROR" in event["note"]
    ]
    client = GoSide(is_gateway=False)
    client.lower.upper.data_received(refusal)
    assert "group ID and password cannot be empty" in str(client.lost[0])
    await turns()


async def test_recorded_unused_type_ends_our_session() -> None:
    (unused,) = [
        bytes.fromhex(event["hex"])
        for event in vector("p-anyproxy-rejections")
        if event["note"].startswith("connection 5") and "AUTH" in event["note"]
    ]
    gateway = GoSide(is_gateway=True)
    gateway.lower.upper.data_received(unused)
    assert "unexpected message of type 0x06" in str(gateway.lost[0])
    await turns()
