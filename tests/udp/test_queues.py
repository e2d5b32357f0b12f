"""Datagrams that wait: order, turns, bounds, and what is dropped."""

from __future__ import annotations

from mtt.udp.queues import MAX_BYTES, MAX_FLOW_BYTES, MIN_FLOW_BYTES, FairQueues
from mtt.wire.datagrams import HEADER_SIZE, MAX_DATAGRAM


def emptied(queues: FairQueues) -> list[tuple[int, bytes]]:
    found = []
    while queues:
        found.append(queues.pop())
    return found


def test_order_within_a_flow() -> None:
    queues = FairQueues()
    datagrams = [(1, bytes([number])) for number in range(9)]
    for flow, payload in datagrams:
        assert queues.add(flow, payload) == 0
    assert emptied(queues) == datagrams


def test_flows_take_turns() -> None:
    queues = FairQueues()
    for payload in (b"a", b"b", b"c"):
        queues.add(1, payload)
    queues.add(2, b"x")
    queues.add(3, b"y")
    assert emptied(queues) == [(1, b"a"), (2, b"x"), (3, b"y"), (1, b"b"), (1, b"c")]


def test_full_queue_drops_its_oldest_datagrams() -> None:
    queues = FairQueues()
    size = 1000
    room = MAX_FLOW_BYTES // (size + HEADER_SIZE)
    queues.add(2, b"another flow loses nothing")
    dropped = sum(queues.add(1, number.to_bytes(size, "big")) for number in range(room + 10))
    assert dropped == 10
    kept = [int.from_bytes(payload) for flow, payload in emptied(queues) if flow == 1]
    assert kept == list(range(10, room + 10))


def test_largest_datagram_fits() -> None:
    queues = FairQueues()
    assert queues.add(1, bytes(MAX_DATAGRAM)) == 0
    assert queues.add(1, bytes(MAX_DATAGRAM)) == 1
    assert len(emptied(queues)) == 1


def test_empty_datagrams_are_bounded_too() -> None:
    queues = FairQueues()
    count = MAX_FLOW_BYTES // HEADER_SIZE + 100
    assert sum(queues.add(1, b"") for _ in range(count)) == count - MAX_FLOW_BYTES // HEADER_SIZE


def test_many_flows_share_the_room() -> None:
    queues = FairQueues()
    flows = 1024
    for _ in range(100):
        for flow in range(flows):
            queues.add(flow, bytes(MIN_FLOW_BYTES // 2 - HEADER_SIZE))
    held = emptied(queues)
    assert sum(len(payload) + HEADER_SIZE for _, payload in held) <= 2 * MAX_BYTES
    assert {flow for flow, _ in held} == set(range(flows))


def test_datagram_too_large_for_its_share_is_dropped() -> None:
    queues = FairQueues()
    for flow in range(1024):
        queues.add(flow, b"x")
    assert queues.add(5000, bytes(MAX_DATAGRAM)) == 1
    assert 5000 not in {flow for flow, _ in emptied(queues)}


def test_discard_and_clear() -> None:
    queues = FairQueues()
    for flow in (1, 1, 2):
        queues.add(flow, b"x")
    assert queues.discard(1) == 2
    assert queues.discard(1) == 0
    assert queues.clear() == 1
    assert not queues
    assert queues.clear() == 0


def test_payload_is_copied() -> None:
    queues = FairQueues()
    buffer = bytearray(b"before")
    queues.add(1, memoryview(buffer))
    buffer[:] = b"after!"
    assert queues.pop() == (1, b"before")
