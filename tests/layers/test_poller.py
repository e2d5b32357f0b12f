"""Which sockets are ready: by epoll and by the event loop's own means, and who is served when."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import select
import socket
import weakref
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from mtt.layers import poller as module
from mtt.layers.poller import (
    BUSY_EVENTS,
    MAX_EVENTS,
    READ,
    WRITE,
    EpollPoller,
    LoopPoller,
    Poller,
    poller,
)
from mtt.log import subject
from tests.support.bottom import on_every_loop, reports
from tests.support.runner import open_descriptors
from tests.support.transports import Recorder, attach, tcp_sockets, turns

assert on_every_loop  # a fixture of every test here

needs_epoll = pytest.mark.skipif(not hasattr(select, "epoll"), reason="needs epoll")


@contextlib.contextmanager
def pairs(count: int = 1) -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    """Connected sockets, and the running loop's poller without those that a test leaves there."""
    with contextlib.ExitStack() as stack:
        made = [tcp_sockets() for _ in range(count)]
        for near, far in made:
            stack.enter_context(near)
            stack.enter_context(far)
            stack.callback(poller().forget, near.fileno())
        yield made


class Calls:
    """Remembers what a socket's `ready` was called with, and takes a byte if there is one."""

    def __init__(self, sock: socket.socket, also: Callable[[], object] = lambda: None) -> None:
        self.events: list[int] = []
        self._sock = sock
        self._also = also

    def __call__(self, events: int) -> None:
        self.events.append(events)
        self._also()
        if events & READ:
            self._sock.recv(1)


async def test_each_loop_has_one_poller() -> None:
    assert poller() is poller()
    kind = LoopPoller if module.EpollPoller is LoopPoller else EpollPoller
    assert type(poller()) is kind
    others: list[Poller] = []

    async def other() -> None:
        others.append(poller())

    await asyncio.to_thread(lambda: asyncio.run(other()))
    assert others[0] is not poller()


async def test_system_without_epoll_uses_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(select, "epoll", raising=False)
    monkeypatch.setattr(module, "_pollers", {})
    assert isinstance(poller(), LoopPoller)


async def test_readable_socket_is_reported_until_it_is_read() -> None:
    with pairs() as [(near, far)]:
        calls = Calls(near)
        poller().watch(near.fileno(), READ, calls)
        await turns(5)
        assert calls.events == []
        far.send(b"ab")
        while len(calls.events) < 2:  # it is told again as long as something is left
            await turns(1)
        await turns(5)
        assert calls.events == [READ, READ]


async def test_writable_socket_is_reported() -> None:
    with pairs() as [(near, _)]:
        calls = Calls(near)
        poller().watch(near.fileno(), WRITE, calls)
        await turns(5)
        assert calls.events
        assert set(calls.events) == {WRITE}


async def test_events_and_callback_of_a_socket_can_change() -> None:
    with pairs() as [(near, far)]:
        first, second = Calls(near), Calls(near)
        poller().watch(near.fileno(), WRITE, first)
        poller().watch(near.fileno(), READ, second)
        await turns(5)
        assert (first.events, second.events) == ([], [])
        far.send(b"a")
        while not second.events:
            await turns(1)
        poller().watch(near.fileno(), READ | WRITE, second)
        far.send(b"b")
        while sum(events & READ for events in second.events) < 2:
            await turns(1)
        assert not first.events
        assert any(events & WRITE for events in second.events)
        poller().watch(near.fileno(), WRITE, first)
        second.events.clear()
        await turns(5)
        assert not second.events
        assert set(first.events) == {WRITE}


async def test_forgotten_socket_gets_no_events_and_may_return() -> None:
    with pairs() as [(near, far)]:
        calls = Calls(near)
        poller().watch(near.fileno(), READ | WRITE, calls)
        poller().forget(near.fileno())
        poller().forget(near.fileno())
        far.send(b"a")
        await turns(5)
        assert not calls.events
        poller().watch(near.fileno(), READ, calls)
        while not calls.events:
            await turns(1)


async def test_socket_forgotten_by_a_callback_gets_no_event() -> None:
    with pairs(2) as made:
        numbers = [near.fileno() for near, _ in made]
        calls: list[Calls] = []
        for (near, far), other in zip(made, reversed(numbers), strict=True):
            calls.append(Calls(near, partial(poller().forget, other)))
            far.send(b"x")
        for number, call in zip(numbers, calls, strict=True):
            poller().watch(number, READ, call)
        await turns(5)
        assert sorted(len(call.events) for call in calls) == [0, 1]


async def test_reset_is_reported_to_readers_and_writers() -> None:
    for events in (READ, WRITE):
        with pairs() as [(near, far)]:
            told: list[int] = []

            def ready(what: int, number: int = near.fileno(), told: list[int] = told) -> None:
                told.append(what)
                poller().forget(number)

            far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            far.close()
            poller().watch(near.fileno(), events, ready)
            await turns(5)
            assert len(told) == 1


async def test_failing_callback_does_not_stop_others() -> None:
    bug = RuntimeError("a bug")

    def fails(_: int) -> None:
        raise bug

    with pairs(2) as [(bad, bad_far), (good, good_far)], reports() as found:
        calls = Calls(good)
        bad_far.send(b"x")
        good_far.send(b"x")
        poller().watch(bad.fileno(), READ, fails)
        poller().watch(good.fileno(), READ, calls)
        await turns(5)
        assert calls.events == [READ]
        assert bug in found


async def test_loop_gets_its_turn_while_sockets_are_always_ready(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = 5.0
    counts: list[int] = []

    def ready(_: int) -> None:  # without reading: it is ready for ever
        nonlocal clock
        clock += module.MAX_TURN_TIME / 8
        counts[-1] += 1

    monkeypatch.setattr(module.time, "monotonic", lambda: clock)
    with pairs(3) as made:
        for near, far in made:
            far.send(b"x")
            poller().watch(near.fileno(), READ, ready)
        for _ in range(5):
            counts.append(0)
            await turns(1)
    # Those that are ready at the same time are told together: 3, 6, and with 9 time is up.
    whole = 3 if isinstance(poller(), LoopPoller) else 9
    assert set(counts[1:]) <= {0, whole}
    assert sum(counts) >= 2 * whole


@needs_epoll
async def test_socket_made_ready_meanwhile_precedes_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if isinstance(poller(), LoopPoller):
        pytest.skip("the loop serves in its own way")
    monkeypatch.setattr(module, "MAX_TURN_TIME", 60.0)
    order: list[str] = []
    with pairs(BUSY_EVENTS + 1) as [(last, last_far), *first]:

        def begin() -> None:
            order.append("first")
            if order.count("first") == BUSY_EVENTS:
                asyncio.get_running_loop().call_soon(order.append, "the loop")
                last_far.send(b"x")

        for near, far in first:
            far.send(b"x")
            poller().watch(near.fileno(), READ, Calls(near, begin))
        poller().watch(last.fileno(), READ, Calls(last, lambda: order.append("last")))
        while "last" not in order:
            await turns(1)
        assert order[: BUSY_EVENTS + 1] == [*["first"] * BUSY_EVENTS, "last"]


async def test_closed_socket_may_be_forgotten() -> None:
    near, far = tcp_sockets()
    with far:
        number = near.fileno()
        poller().watch(number, READ, Calls(near))
        near.close()
        poller().forget(number)


@needs_epoll
def test_more_events_than_one_poll_returns() -> None:
    async def use() -> None:
        with pairs(MAX_EVENTS + 5) as made:
            calls = [Calls(near) for near, _ in made]
            for (near, far), call in zip(made, calls, strict=True):
                far.send(b"x")
                poller().watch(near.fileno(), READ, call)
            await turns(10)
            assert all(call.events == [READ] for call in calls)

    asyncio.run(use())


@pytest.mark.parametrize("watching", [False, True])
def test_poller_goes_with_its_loop(watching: bool) -> None:
    before = len(open_descriptors())
    loops = []

    async def use() -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        near, far = tcp_sockets()
        attach(near, Recorder())  # refers to the loop
        if not watching:
            poller().forget(near.fileno())
        near.close()
        far.close()

    for _ in range(3):
        asyncio.run(use())
    gc.collect()
    assert not any(loop() for loop in loops)
    assert len(open_descriptors()) <= before


async def test_callbacks_know_the_tunnel_they_are_for() -> None:
    found: list[object] = []

    def ready(_events: int) -> None:
        found.append(subject.get())
        near.recv(1)

    with pairs() as ((near, far),):
        watch = partial(poller().watch, near.fileno(), READ, ready)
        context = contextvars.copy_context()
        context.run(subject.set, "home")
        for watch_it in (partial(context.run, watch), watch):
            watch_it()
            far.send(b"x")
            await turns()
    assert found == ["home", None]
