"""Links on every stack of layers: datagrams stay whole and in order on all of them."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from mtt.layers.base import Data, StreamTransport
from mtt.udp.counters import UdpCounters
from mtt.udp.link import Link
from mtt.udp.queues import FairQueues
from mtt.wire.datagrams import MAX_DATAGRAM
from tests.support.certs import Certs
from tests.support.stacks import STACKS, Stack
from tests.support.transports import turns
from tests.support.tunnels import eventually

Datagrams = list[tuple[int, bytes]]


class Owner:
    def __init__(self) -> None:
        self.datagrams: Datagrams = []

    def deliver(self, datagrams: Sequence[tuple[int, Data]]) -> int:
        self.datagrams += [(flow, bytes(payload)) for flow, payload in datagrams]
        return len(datagrams)


def started(stream: StreamTransport, owner: Owner, *, is_client: bool) -> Link:
    link = Link(
        stream, owner, UdpCounters(),
        is_client=is_client, done=lambda _: None, queues=FairQueues(),
    )  # fmt: skip
    link.start()
    return link


@pytest.mark.parametrize("stack", STACKS, ids=lambda stack: stack.name)
async def test_datagrams_both_ways(stack: Stack, certs: Certs) -> None:
    rng = random.Random(8)
    sizes = [0, 1, 1200, MAX_DATAGRAM, *(rng.randrange(1500) for _ in range(40))]
    sent: Datagrams = [(rng.randrange(1, 9), rng.randbytes(size)) for size in sizes]
    async with stack.open(certs) as (near, far):
        here, there = Owner(), Owner()
        server = started(far.transport, there, is_client=False)
        client = started(near.transport, here, is_client=True)
        await eventually(lambda: client.is_open and server.is_open)
        for flow, payload in sent:
            client.send(flow, payload)
            server.send(flow, payload)
            await turns(2)
        await eventually(lambda: len(here.datagrams) == len(there.datagrams) == len(sent))
        assert here.datagrams == there.datagrams == sent
        client.close("done")
        await eventually(lambda: server.reason)
