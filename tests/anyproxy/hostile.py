"""Peers that break the protocol between gateway and agent, at random but by a seed."""

from __future__ import annotations

import json
import random
import struct
from typing import Any

from mtt.outcome import Outcome
from mtt.wire.agent import SUBPROTOCOL, TCP, UDP, Answer, Head
from tests.anyproxy.serving import GROUP, PASSWORD
from tests.support.certs import Certs
from tests.support.gopeer import FIN, NOP, PSH, SYN, WebSocket, smux_frame, tls_connect
from tests.support.gopeer import upgrade_request as request

TEXT = 1  # an empty one ends a direction, between our own ends
CONTROL = 3  # the agent's own stream


async def hostile_agent(port: int, certs: Certs, name: str = "hostile") -> WebSocket:
    """An agent that has joined the group, in the test's hands."""
    tls = await tls_connect(port, certs)
    headers = {"X_Client_Id": name, "X_Group_Id": GROUP, "X_Group_Password": PASSWORD}
    await tls.send(request(certs.name, "/ws", SUBPROTOCOL, **headers))
    head = await tls.until(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 "), head
    return WebSocket(tls, client=True)


def frames(rng: random.Random) -> bytes:
    """Frames of every kind, for streams that exist and others."""
    return b"".join(_frame(rng) for _ in range(rng.randrange(1, 30)))


def _frame(rng: random.Random) -> bytes:
    command = rng.choice((SYN, FIN, PSH, PSH, PSH, NOP, rng.randrange(256)))
    stream = rng.choice((0, 1, 2, 3, 4, 5, 6, 8, 2**32 - 2, 2**32 - 1, rng.randrange(2**32)))
    has_payload = command == PSH or rng.random() < 0.05
    return smux_frame(command, stream, rng.randbytes(rng.randrange(200)) if has_payload else b"")


def answers(rng: random.Random) -> bytes:
    """Answers to streams that the gateway may have opened, good and malformed, with other ends."""
    said = b""
    for _ in range(rng.randrange(1, 10)):
        stream = 2 * rng.randrange(1, 6)
        said += smux_frame(PSH, stream, _answer(rng))
        for command in (FIN, PSH, NOP):
            if rng.random() < 0.2:
                said += smux_frame(command, stream)
    return said


def _answer(rng: random.Random) -> bytes:
    return rng.choice(
        (
            Answer(Outcome.SUCCEEDED, ("192.0.2.1", 5)).encode(),
            Answer(Outcome.SUCCEEDED).encode() + rng.randbytes(3000),
            struct.pack("!HB", 1, rng.randrange(256)),
            b"\xff\xff" + rng.randbytes(100),
            b"\4\1" + rng.randbytes(1030),
            b"\0\5\0" + rng.randbytes(4),
            b"\0\0",
            b"",
            rng.randbytes(3),
        )
    )


def heads(rng: random.Random, target: int) -> bytes:
    """Streams with heads, good and malformed, with other ends."""
    said = b""
    for _ in range(rng.randrange(1, 8)):
        stream = 2 * rng.randrange(1, 10)
        said += smux_frame(SYN, stream) if rng.random() < 0.8 else b""
        said += smux_frame(PSH, stream, _head(rng, target))
        for command in (FIN, PSH, NOP):
            if rng.random() < 0.15:
                said += smux_frame(command, stream)
    return said


def _head(rng: random.Random, target: int) -> bytes:
    return rng.choice(
        (
            Head(TCP, "127.0.0.1", target).encode() + rng.randbytes(100),
            Head(TCP, "10.0.0.1", 80, ("192.0.2.1", 5)).encode(),
            Head(UDP, "0.0.0.0", 0).encode() + rng.randbytes(50),
            Head(UDP, "0.0.0.0", 0).encode() + b"\2\3abc\0\x50\0\1x",
            b"\xff\xff" + rng.randbytes(200),
            b"\0\7\1" + rng.randbytes(6),
            b"\0\0",
            b"",
        )
    )


def messages(rng: random.Random) -> bytes:
    """Messages of the control stream."""
    said = b""
    for _ in range(rng.randrange(1, 6)):
        text = rng.choice(
            (
                json.dumps({"ports": [_value(rng) for _ in range(rng.randrange(4))]}),
                json.dumps({"drain": _value(rng)}),
                json.dumps(_value(rng)),
                "[" * 30_000,
                '{"ports":' + "1" * 30_000 + "}",
                "{",
            )
        )
        message = struct.pack("!H", len(text)) + text.encode()
        said += smux_frame(PSH, CONTROL, message)
    return said


def _value(rng: random.Random, depth: int = 0) -> Any:
    values = (None, True, 0, -1, 65536, 10**30, 1.5, "", "udp", "\ud800", "10.0.0.0/8", "é" * 300)
    if depth < 3 and rng.random() < 0.6:
        keys = ("port", "protocol", "host", "target_port", "allow_from", "proxy_protocol", "x")
        if rng.random() < 0.3:
            return [_value(rng, depth + 1) for _ in range(rng.randrange(4))]
        return {rng.choice(keys): _value(rng, depth + 1) for _ in range(rng.randrange(6))}
    if rng.random() < 0.3:
        return {"port": 0, "protocol": "tcp", "host": "127.0.0.1", "target_port": 22}
    return rng.choice(values)


async def misbehave(peer: WebSocket, rng: random.Random, said: bytes) -> None:
    """Send `said`, or something worse."""
    match rng.randrange(6):
        case 0:
            await peer.below.send(rng.randbytes(200))
        case 1:
            await peer.send(rng.randbytes(rng.randrange(130)), rng.choice((TEXT, 8, 9, 10)))
        case 2:
            await peer.send(b"", TEXT)
            await peer.send(frames(rng))
        case _:
            await peer.send(said)
