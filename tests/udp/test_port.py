"""The client's UDP port: flows, the link they share, and what happens without one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from functools import partial

import pytest

from mtt.address import Endpoint
from mtt.errors import NetworkError
from mtt.layers.base import StreamTransport
from mtt.layers.parked import Parked
from mtt.net.listen import bind_udp
from mtt.observe.metrics import Counters
from mtt.outbound import reuse
from mtt.tunnels.open_tunnels import CLIENT_LOGGED_ERRORS, OpenTunnels
from mtt.udp import flows, link, port
from mtt.udp.port import RETRY_TIMES, UdpPort
from mtt.wire.datagrams import ANSWER, HEAD, PING, Decoder, encode
from tests.support.clock import Clock
from tests.support.transports import FakeTransport, turns
from tests.support.tunnels import eventually, logged
from tests.udp.peers import Udp


class Far:
    """The server, as far as the port sees it: it hands out streams."""

    def __init__(self) -> None:
        self.streams: list[FakeTransport] = []
        self.error: NetworkError | None = None
        self.opened = 0
        self.may_open = asyncio.Event()
        self.may_open.set()

    async def open_stream(self) -> StreamTransport:
        self.opened += 1
        await self.may_open.wait()
        if self.error is not None:
            raise self.error
        stream = FakeTransport(Parked())
        stream.get_protocol().transport = stream
        self.streams.append(stream)
        return stream

    @property
    def stream(self) -> FakeTransport:
        return self.streams[-1]

    async def answer(self, count: int = 1) -> None:
        """Wait for stream number `count`, and open its link."""
        await eventually(lambda: len(self.streams) == count and self.stream.sent[:16] == HEAD)
        self.stream.upper.data_received(ANSWER)

    def datagrams(self) -> list[tuple[int, bytes]]:
        """What has arrived on the last stream."""
        found = Decoder().feed(bytes(self.stream.sent[len(HEAD) :]))
        return [(flow, bytes(payload)) for flow, payload in found]

    async def received(self, count: int) -> list[tuple[int, bytes]]:
        await eventually(lambda: len(self.datagrams()) >= count)
        return self.datagrams()


class Scene:
    """A port, its server, and its address."""

    def __init__(self, idle_time: float) -> None:
        self.far = Far()
        self.sockets = bind_udp(Endpoint(("127.0.0.1",), 0))
        self.address: int = self.sockets[0].getsockname()[1]
        self.tunnels = OpenTunnels(Counters(), timeout=300, logged_errors=CLIENT_LOGGED_ERRORS)
        self.port = UdpPort(
            "server.example:443", self.far.open_stream, self.tunnels, idle_time=idle_time
        )
        self.port.start(self.sockets)

    def application(self) -> Udp:
        return Udp(self.address)


@contextlib.asynccontextmanager
async def scene(idle_time: float = 300) -> AsyncIterator[Scene]:
    here = Scene(idle_time)
    try:
        yield here
    finally:
        await here.port.close()
        for sock in here.sockets:
            sock.close()
        await here.tunnels.close()
        await turns()


async def test_datagrams_wait_for_the_link() -> None:
    async with scene() as here:
        with here.application() as one, here.application() as two:
            one.send(b"a", b"b")
            two.send(b"c")
            await here.far.answer()
            assert sorted(await here.far.received(3)) == [(1, b"a"), (1, b"b"), (2, b"c")]
            assert here.far.opened == 1
            assert here.port.flows == 2
            assert len(here.tunnels) == 1


async def test_answers_go_to_the_address_of_their_flow() -> None:
    async with scene() as here:
        with here.application() as one, here.application() as two:
            one.send(b"1")
            await here.far.answer()
            await here.far.received(1)
            two.send(b"2")
            await here.far.received(2)
            answers = encode(2, b"two") + encode(1, b"") + encode(77, b"no flow")
            here.far.stream.upper.data_received(answers)
            assert await two.receive() == b"two"
            assert await one.receive() == b""
            assert here.port.counters.dropped_link == 1


async def test_nothing_is_opened_before_the_first_datagram() -> None:
    async with scene() as here:
        await turns()
        assert here.far.opened == 0


async def test_failure_to_open_drops_and_tries_again_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch, port)
    async with scene() as here:
        here.far.error = NetworkError("server.example:443: no route")

        def dropped(count: int) -> bool:
            return here.port.counters.dropped_link == count

        with here.application() as application, logged() as lines:
            for count in (1, 2, 3):
                application.send(b"lost")
                await eventually(partial(dropped, count))
            assert here.far.opened == 2  # the first attempt is repeated at once
            await clock.passes(RETRY_TIMES[0])
            here.far.error = None
            application.send(b"sent")
            await here.far.answer()
            assert await here.far.received(1) == [(1, b"sent")]
        assert lines == ["WARNING UDP: server.example:443: no route"]


async def test_delay_of_attempts_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, port)
    async with scene() as here:
        here.far.error = NetworkError("no route")

        def tried(times: int) -> bool:
            return here.far.opened == times

        with here.application() as application:
            for attempt in range(1, 9):
                application.send(b"lost")
                await eventually(partial(tried, attempt))
                await clock.passes(RETRY_TIMES[1])


async def test_flows_survive_the_end_of_the_link() -> None:
    async with scene() as here:
        with here.application() as application:
            application.send(b"1")
            await here.far.answer()
            await here.far.received(1)
            here.far.stream.lose(None)
            await turns()
            assert here.port.flows == 1
            application.send(b"2")
            await here.far.answer(2)
            assert await here.far.received(1) == [(1, b"2")]
            here.far.stream.upper.data_received(encode(1, b"reply"))
            assert await application.receive() == b"reply"


async def test_links_that_end_at_once_are_not_replaced_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch, port)
    async with scene() as here:
        with here.application() as application:
            for count in (1, 2):
                application.send(b"x")
                await here.far.answer(count)
                here.far.stream.lose(None)
                await turns()
            application.send(b"lost")
            await eventually(lambda: here.port.counters.dropped_link == 1)
            assert here.far.opened == 2
            await clock.passes(RETRY_TIMES[0])
            application.send(b"sent")
            await here.far.answer(3)


async def test_silent_server_is_asked_and_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, port, link, reuse)
    async with scene() as here:
        with here.application() as application:
            application.send(b"1")
            await here.far.answer()
            await here.far.received(1)
            sent = 1
            while (PING, b"") not in here.far.datagrams():
                assert clock.now < 1000 + port.QUIET_TIME + 3 * flows.SWEEP_TIME
                application.send(b"one way")
                sent += 1
                await here.far.received(sent)
                await clock.passes(flows.SWEEP_TIME)
            here.far.stream.upper.data_received(encode(PING, b""))
            await clock.passes(2 * flows.SWEEP_TIME)
            assert not here.far.stream.closing


async def test_silent_server_without_answer_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, port, link, reuse)
    async with scene() as here:
        with here.application() as application:
            application.send(b"1")
            await here.far.answer()
            await here.far.received(1)
            sent = 1
            while not here.far.stream.closing:
                assert clock.now < 1000 + port.QUIET_TIME + 4 * flows.SWEEP_TIME
                application.send(b"one way")
                sent += 1
                await eventually(lambda: here.port.counters.sent == sent)  # noqa: B023
                await clock.passes(flows.SWEEP_TIME)
            application.send(b"again")
            await here.far.answer(2)


async def test_idle_link_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, port, link, reuse)
    async with scene(idle_time=600) as here:
        with here.application() as application:
            application.send(b"1")
            await here.far.answer()
            await here.far.received(1)
            here.far.stream.upper.data_received(encode(1, b"reply"))
            await clock.passes(300)
            assert here.far.datagrams() == [(1, b"1")]
            assert not here.far.stream.closing


async def test_server_without_udp_is_named() -> None:
    async with scene() as here:
        with here.application() as application, logged() as lines:
            application.send(b"secret")
            await eventually(lambda: here.far.streams)
            here.far.stream.upper.data_received(b"HTTP/1.1 400 Bad Request\r\n")
            await eventually(lambda: here.far.stream.closing)
            assert here.far.stream.sent == HEAD
            await eventually(lambda: lines)
        assert lines[0].startswith("WARNING server.example:443: no UDP through this server: start")


async def test_idle_flows_end_and_then_the_link(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, port)
    async with scene(idle_time=120) as here:
        with here.application() as answered, here.application() as unanswered:
            answered.send(b"1")
            await here.far.answer()
            await here.far.received(1)
            unanswered.send(b"2")
            await here.far.received(2)
            here.far.stream.upper.data_received(encode(1, b"reply"))
            assert await answered.receive() == b"reply"
            await clock.passes(flows.UNANSWERED_TIME - flows.SWEEP_TIME)
            assert here.port.flows == 2
            await clock.passes(2 * flows.SWEEP_TIME)
            assert here.port.flows == 1
            await clock.passes(120 - flows.UNANSWERED_TIME - 3 * flows.SWEEP_TIME)
            assert here.port.flows == 1
            assert not here.far.stream.closing
            await clock.passes(3 * flows.SWEEP_TIME)
            assert here.port.flows == 0
            assert here.far.stream.closing
            assert not here.far.stream.aborted
            assert not clock.pending  # nothing wakes an idle port


async def test_longest_idle_flow_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port, "MAX_FLOWS", 2)
    clock = Clock(monkeypatch, port)
    async with scene() as here:
        with here.application() as one, here.application() as two, here.application() as three:
            for number, application in enumerate((one, two, one, three), 1):
                application.send(str(number).encode())
                if number == 1:
                    await here.far.answer()
                await here.far.received(number)
                await clock.passes(1)
            assert here.port.flows == 2
            two.send(b"5")
            found = await here.far.received(5)
            assert found == [(1, b"1"), (2, b"2"), (1, b"3"), (3, b"4"), (4, b"5")]


async def test_numbers_of_open_flows_are_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port, "MAX_FLOW", 3)
    monkeypatch.setattr(port, "MAX_FLOWS", 2)
    async with scene() as here:
        applications = [here.application() for _ in range(5)]
        try:
            for number, application in enumerate(applications, 1):
                application.send(b"x")
                if number == 1:
                    await here.far.answer()
                await here.far.received(number)
            numbers = [flow for flow, _ in here.far.datagrams()]
            assert numbers == [1, 2, 3, 1, 2]
        finally:
            for application in applications:
                application.close()


async def test_dead_link_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, port)
    async with scene() as here:
        with here.application() as application, logged() as lines:
            application.send(b"1")
            await here.far.answer()
            await here.far.received(1)
            monkeypatch.setattr(reuse.ReuseGuard, "admits", lambda *_: False)
            await clock.passes(2 * flows.SWEEP_TIME)
            assert here.far.streams[0].aborted
            assert here.port.flows == 1
            application.send(b"2")
            await here.far.answer(2)
            assert await here.far.received(1) == [(1, b"2")]
        assert any("stopped answering" in line for line in lines)


async def test_too_large_datagrams_are_logged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port, "MAX_DATAGRAM", 1000)
    async with scene() as here:
        with here.application() as application, logged() as lines:
            application.send(bytes(1001), bytes(1002), bytes(1000))
            await here.far.answer()
            assert await here.far.received(1) == [(1, bytes(1000))]
            assert here.port.counters.dropped_size == 2
        assert [line.partition("UDP: ")[2] for line in lines] == [
            "a datagram of 1001 bytes was dropped: the limit is 1000"
        ]


async def test_close_during_the_opening() -> None:
    async with scene() as here:
        here.far.may_open.clear()
        with here.application() as application:
            application.send(b"x")
            await eventually(lambda: here.far.opened)
            await here.port.close()
        await here.port.close()  # again


async def test_internal_errors_do_not_end_the_port(monkeypatch: pytest.MonkeyPatch) -> None:
    async with scene() as here:

        async def broken() -> StreamTransport:
            raise ValueError("a fault")

        here.port._open_stream = broken
        with here.application() as application, logged(logging.WARNING) as lines:
            application.send(b"x")
            await eventually(lambda: lines)
        assert lines == ["WARNING UDP: a fault"]
        assert here.port.counters.dropped_link == 1


async def test_metrics() -> None:
    async with scene() as here:
        with here.application() as application:
            application.send(b"1", b"2")
            await here.far.answer()
            await here.far.received(2)
            here.far.stream.upper.data_received(encode(1, b"reply"))
            page = here.port.metrics()
    assert "mtt_udp_flows 1\n" in page
    assert "mtt_udp_flows_opened_total 1\n" in page
    assert 'mtt_udp_datagrams_total{direction="up"} 2\n' in page
    assert 'mtt_udp_datagrams_total{direction="down"} 1\n' in page
