"""What a stream begins with, read before anything else."""

from __future__ import annotations

import pytest

from mtt.errors import Cause, NetworkError
from mtt.layers.parked import Parked
from mtt.layers.stream_head import StreamHead
from mtt.wire.errors import WireError
from tests.support.clock import Clock
from tests.support.transports import FakeLayer, turns


def parse(data: bytes) -> tuple[bytes, int] | None:
    if data.startswith(b"?"):
        raise WireError("no head")
    end = data.find(b".")
    return None if end < 0 else (data[:end], end + 1)


class Reading:
    """A head that is being read from a fake stream, and what became of it."""

    def __init__(self) -> None:
        self.heads: list[bytes] = []
        self.errors: list[Exception] = []
        self.protocol = StreamHead(
            parse,
            lambda _, head: self.heads.append(head),
            lambda _, error: self.errors.append(error),
            what="head",
            seconds=10.0,
        )
        self.transport = FakeLayer(self.protocol)

    def begin(self) -> None:
        self.protocol.connection_made(self.transport)


@pytest.mark.parametrize("pieces", [[b"head.rest"], [b"he", b"ad.rest"], [b"head", b".", b"rest"]])
async def test_head_is_found_and_the_rest_is_parked(pieces: list[bytes]) -> None:
    reading = Reading()
    reading.begin()
    for piece in pieces:
        reading.transport.upper.data_received(piece)
    assert (reading.heads, reading.errors) == ([b"head"], [])
    held = reading.transport.upper
    assert isinstance(held, Parked)
    assert held.early == b"rest"


@pytest.mark.parametrize(
    "end, text, cause",
    [
        (lambda it: it.eof_received(), "the stream ended before its head", Cause.EOF),
        (lambda it: it.connection_lost(None), "the stream was closed", Cause.EOF),
        (lambda it: it.connection_lost(NetworkError("dead")), "dead", Cause.OTHER),
        (lambda it: it.data_received(b"?"), "no head", Cause.OTHER),
    ],
)
async def test_stream_without_a_head_fails_once(end, text: str, cause: Cause) -> None:  # type: ignore[no-untyped-def]
    reading = Reading()
    reading.begin()
    if text != "no head":
        reading.protocol.data_received(b"hea")
    end(reading.protocol)
    reading.protocol.data_received(b"head.")
    reading.protocol.connection_lost(None)
    assert [str(error) for error in reading.errors] == [text]
    assert not reading.heads
    assert getattr(reading.errors[0], "cause", Cause.OTHER) is cause


async def test_time_limit_runs_from_the_beginning_of_the_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    reading = Reading()
    await clock.passes(11)
    assert not reading.errors  # it waits to be admitted
    reading.begin()
    await clock.passes(9)
    assert not reading.errors
    await clock.passes(2)
    assert [str(error) for error in reading.errors] == ["no head within 10 s"]
    await turns()


async def test_stream_lost_before_it_began_fails_nothing() -> None:
    reading = Reading()
    reading.protocol.connection_lost(NetworkError("the session is over"))
    assert not reading.errors
