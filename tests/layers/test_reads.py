"""How much of a socket is read at a time."""

from __future__ import annotations

import socket

import pytest

from mtt.layers import reads as module
from mtt.layers.base import Data
from mtt.layers.reads import LARGE_READ, QUICK_READS, QUICK_TIME, READ_SIZE, ReadSizer
from mtt.layers.tcp import SocketTransport
from tests.support.transports import Recorder, tcp_sockets, turns


class Time:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 50.0
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)


def test_quick_full_reads_become_large(monkeypatch: pytest.MonkeyPatch) -> None:
    time, reads = Time(monkeypatch), ReadSizer()
    for _ in range(QUICK_READS + 1):
        assert len(reads.buffer) == READ_SIZE
        time.now += QUICK_TIME / 2
        reads.update(READ_SIZE)
    assert len(reads.buffer) == LARGE_READ
    time.now += QUICK_TIME / 2
    reads.update(LARGE_READ)
    assert len(reads.buffer) == LARGE_READ
    reads.update(READ_SIZE - 1)
    assert len(reads.buffer) == READ_SIZE


def test_reads_stay_small_where_large_ones_are_off(monkeypatch: pytest.MonkeyPatch) -> None:
    Time(monkeypatch)
    reads = ReadSizer(large=False)
    for _ in range(5 * QUICK_READS):
        reads.update(READ_SIZE)
        assert len(reads.buffer) == READ_SIZE


def test_full_reads_one_at_a_time_stay_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """So they are when a line is slower than we are."""
    time, reads = Time(monkeypatch), ReadSizer()
    for _ in range(5 * QUICK_READS):
        time.now += QUICK_TIME * 1.01
        reads.update(READ_SIZE)
        assert len(reads.buffer) == READ_SIZE


def test_reads_that_do_not_fill_the_buffer_stay_small(monkeypatch: pytest.MonkeyPatch) -> None:
    Time(monkeypatch)
    reads = ReadSizer()
    for _ in range(5 * QUICK_READS):
        reads.update(READ_SIZE)
        reads.update(READ_SIZE - 1)
        assert len(reads.buffer) == READ_SIZE


class Sizes(Recorder):
    """Remembers how much came at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def data_received(self, data: Data) -> None:
        super().data_received(data)
        self.sizes.append(len(data))


@pytest.mark.parametrize("limited", [False, True])
async def test_limit_reads_keeps_reads_of_a_socket_small(
    limited: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    Time(monkeypatch)  # stands still, so everything comes quickly
    near, far = tcp_sockets()
    recorder = Sizes()
    transport = SocketTransport(near, recorder)
    with far:
        if limited:
            transport.limit_reads()
        left = 8 * LARGE_READ
        while left:
            try:
                left -= far.send(bytes(left), socket.MSG_DONTWAIT)
            except BlockingIOError:
                await turns(1)
        await recorder.received(8 * LARGE_READ)
        assert (max(recorder.sizes) > READ_SIZE) is not limited
        transport.abort()
        await turns()
