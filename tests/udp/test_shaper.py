"""The rate limit of datagrams, with a bucket of the limits of TCP."""

from __future__ import annotations

from typing import Any

import pytest

from mtt.tunnels import rate_limit
from mtt.tunnels.rate_limit import Bucket
from mtt.udp.counters import UdpCounters
from mtt.udp.queues import MAX_FLOW_BYTES
from mtt.udp.shaper import Shaper
from mtt.wire.datagrams import HEADER_SIZE, MAX_DATAGRAM
from mtt_mu_server.lease import LeasedBucket
from tests.support.clock import Clock

RATE = 100_000


class Sent:
    """Takes the place of a link."""

    def __init__(self) -> None:
        self.datagrams: list[tuple[int, bytes]] = []
        self.counters = UdpCounters()

    def send(self, flow: int, payload: bytes) -> None:
        self.datagrams.append((flow, payload))

    @property
    def size(self) -> int:
        return sum(len(payload) + HEADER_SIZE for _, payload in self.datagrams)


def shaper(bucket: Any) -> tuple[Shaper, Sent]:
    link: Any = Sent()
    return Shaper(link, bucket), link


async def test_rate_is_kept_and_nothing_reordered(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, rate_limit)
    shaped, sent = shaper(Bucket(RATE))
    datagrams = [(1, number.to_bytes(1000, "big")) for number in range(60)]
    for datagram in datagrams:
        shaped.send(*datagram)
    burst = RATE * rate_limit.BURST_TIME
    assert burst - 2000 < sent.size <= burst
    await clock.passes(0.2)
    assert burst + 0.1 * RATE < sent.size <= burst + 0.2 * RATE
    await clock.passes(1)
    assert sent.datagrams == datagrams
    assert not sent.counters.dropped_full
    assert shaped.backlog == 0
    shaped.close()


async def test_full_queue_drops_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, rate_limit)
    shaped, sent = shaper(Bucket(RATE))
    count = 2 * MAX_FLOW_BYTES // 1000
    for number in range(count):
        shaped.send(1, number.to_bytes(1000, "big"))
    await clock.passes(5)
    dropped = sent.counters.dropped_full
    assert dropped
    assert len(sent.datagrams) == count - dropped
    numbers = [int.from_bytes(payload) for _, payload in sent.datagrams]
    assert numbers == sorted(numbers)
    assert numbers[-1] == count - 1
    shaped.close()


async def test_datagram_larger_than_the_burst_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, rate_limit)
    shaped, sent = shaper(Bucket(10_000))
    shaped.send(1, bytes(MAX_DATAGRAM))
    shaped.send(1, b"")
    assert not sent.datagrams
    await clock.passes(7)
    assert [len(payload) for _, payload in sent.datagrams] == [MAX_DATAGRAM, 0]
    shaped.close()


async def test_flows_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, rate_limit)
    shaped, sent = shaper(Bucket(RATE))
    for _ in range(40):
        shaped.send(1, bytes(1000))
    shaped.send(2, b"small")
    await clock.passes(0.05)
    assert (2, b"small") in sent.datagrams
    assert len(sent.datagrams) < 35
    shaped.close()


async def test_tokens_of_a_lease() -> None:
    asked: list[int] = []
    bucket = LeasedBucket(asked.append)
    shaped, sent = shaper(bucket)
    shaped.send(1, bytes(100))
    shaped.send(1, bytes(50))
    assert asked == [106, 56]
    bucket.given(100)
    assert not sent.datagrams
    bucket.given(62)
    assert [len(payload) for _, payload in sent.datagrams] == [100, 50]
    shaped.close()


async def test_close_leaves_the_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, rate_limit)
    shaped, sent = shaper(Bucket(RATE))
    for _ in range(40):
        shaped.send(1, bytes(1000))
    shaped.close()
    before = len(sent.datagrams)
    await clock.passes(1)
    assert len(sent.datagrams) == before
    assert not clock.pending
