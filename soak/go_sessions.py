"""Sessions with a Go program of AnyProxy, in both roles, whose peer spoils its messages.

Nothing raises but what the contract allows, every stream that has begun ends, and what a stream
gets is what its peer has sent it.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

from mtt.errors import MttError
from mtt.layers.base import Data
from mtt.layers.parked import hand_over
from mtt.outcome import Outcome
from mtt.wire.agent import TCP, UDP, Head
from mtt.wire.anyproxy import (
    AnyproxyError,
    Close,
    Connect,
    ConnectResponse,
    Error,
    ForwardedPort,
    Message,
    PortForward,
    PortForwardResponse,
    StreamData,
    new_id,
    padded,
    parse,
)
from soak.mutation import mutated
from soak.report import Broken
from tests.layers.anyproxy_side import GoSide
from tests.support.transports import Recorder, turns

# Messages of one session, and the chance that one is spoilt.
MESSAGES, SPOILT = 60, 0.1
# Seconds between two sessions, in which processes have the processor.
PAUSE = 0.02
OUTCOMES = (Outcome.SUCCEEDED, Outcome.CONNECTION_REFUSED, Outcome.NO_AGENT, Outcome.NOT_ALLOWED)
PORTS = (ForwardedPort(2222, 22, "127.0.0.1", "tcp"), ForwardedPort(5353, 53, "::1", "udp"))


class _Datagrams(Recorder):
    """The protocol above a stream of datagrams, which may be empty."""

    def data_received(self, data: Data) -> None:
        if data:
            super().data_received(data)


class Conversation:
    """One session of ours, and its peer."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._is_gateway = rng.random() < 0.5
        self.side = GoSide(is_gateway=self._is_gateway, max_streams=rng.choice((1, 3, 100)))
        self._ids = [padded(new_id(rng.randbytes(12))) for _ in range(4)]
        self._streams: list[tuple[bytes, Recorder, Any]] = []
        self._said: dict[bytes, bytearray] = {}  # what the peer has sent, by stream
        self._served = 0

    async def run(self) -> int:
        """Returns how many messages the peer sent."""
        rng, side = self._rng, self.side
        count = 0
        while count < MESSAGES and not side.session.lost:
            if rng.random() < 0.6:
                self._feed(self._message())
                count += 1
            else:
                self._act()
            self._take_streams()
            side.said()  # raises for a malformed message
            if rng.random() < 0.1:
                await turns(3)
        await side.over()
        for _, upper, _ in self._streams:
            if upper.transport is not None and not upper.lost:
                upper.transport.resume_reading()  # it has not read everything
        await turns()
        for _, upper, _ in self._streams:
            if upper.transport is not None and not upper.lost:
                raise Broken("fuzz, Go sessions: a stream outlives its session")
        self._check()
        return count

    def _message(self) -> Message:
        rng = self._rng
        ids = self._ids + [stream_id for stream_id, _, _ in self._streams[-4:]]
        stream_id = rng.choice(ids)
        data = StreamData(stream_id, rng.randbytes(rng.choice((0, 1, 50, 3000))))
        network = rng.choice(("tcp", "udp"))
        asked: tuple[Message, ...] = (
            (
                ConnectResponse(stream_id, rng.random() < 0.8, "connect: connection refused"),
                PortForward("agent", PORTS),
            )
            if self._is_gateway
            else (
                Connect(stream_id, network, "nas.example:22"),
                PortForwardResponse(True, "", ((2222, True),)),
            )
        )
        if rng.random() < 0.01:
            return Error("enough")
        return rng.choice((data, data, data, asked[0], asked[0], asked[1], Close(stream_id)))

    def _feed(self, message: Message) -> None:
        raw = message.encode()
        if self._rng.random() < SPOILT:
            raw = mutated(self._rng, raw)
        try:
            parsed = parse(raw)
        except AnyproxyError:
            pass
        else:
            if isinstance(parsed, StreamData):
                self._said.setdefault(padded(parsed.id), bytearray()).extend(parsed.data)
        self.side.feed_bytes(raw)

    def _act(self) -> None:
        """Do something that a protocol above does."""
        rng, side = self._rng, self.side
        if self._is_gateway and rng.random() < 0.3:
            head = Head(rng.choice((TCP, UDP)), "nas.example", 22)
            upper = Recorder() if head.network == TCP else _Datagrams()
            stream = side.session.open_stream(upper, head)
            self._streams.append((padded(stream.wire_id), upper, stream))
            return
        live = [upper for _, upper, _ in self._streams if upper.transport and not upper.lost]
        if not live:
            return
        transport = rng.choice(live).transport
        match rng.randrange(6):
            case 0 | 1:
                if not transport.is_closing():
                    transport.write(rng.randbytes(rng.choice((1, 100, 40_000))))
            case 2:
                transport.pause_reading()
            case 3:
                transport.resume_reading()
            case 4:
                transport.close()
            case _:
                transport.abort()

    def _take_streams(self) -> None:
        """Serve what the gateway has opened."""
        served = self.side.served
        while self._served < len(served):
            stream, _, tell = served[self._served]
            self._served += 1
            outcome = self._rng.choice(OUTCOMES)
            tell(outcome)
            if outcome is not Outcome.SUCCEEDED:
                stream.close()
                continue
            upper = Recorder() if not stream.carries_datagrams else _Datagrams()
            self._streams.append((padded(stream.wire_id), upper, stream))
            hand_over(stream, upper)

    def _check(self) -> None:
        for stream_id, upper, stream in self._streams:
            if stream.carries_datagrams:  # some may have been dropped
                continue
            # An id may serve one stream after the other.
            if bytes(upper.data) not in self._said.get(stream_id, b""):
                raise Broken("fuzz, Go sessions: a stream got what was not sent to it")


async def soak(seconds: float, seed: int) -> str:
    """One conversation after the other; how many, in words. Raises Broken."""
    until = time.monotonic() + seconds
    number = messages = 0
    while time.monotonic() < until:
        name = f"{seed} Go {number}"
        try:
            messages += await Conversation(random.Random(name)).run()
        except (AssertionError, MttError, LookupError, ValueError, TypeError) as error:
            what = f"{type(error).__name__}: {error} ({name!r})"
            raise Broken(f"fuzz, Go sessions: {what}") from error
        number += 1
        await asyncio.sleep(PAUSE)
    return f"{messages} messages in {number} sessions with Go programs"
