"""Links: when an agent connects again, and what the log says about it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest

from anyproxy import link as link_module
from anyproxy.link import FIRST_WAIT, GOOD_TIME, LONGEST_WAIT, Link
from mtt.errors import MttError, NetworkError, PeerError, RefusedError
from tests.anyproxy.linking import DOWN, GATEWAY, Scene, Session, running
from tests.support.transports import turns
from tests.support.tunnels import logged


@pytest.fixture
def longest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits are as long as they may be."""
    monkeypatch.setattr(random, "uniform", lambda least, most: most)


# Reconnecting.


@pytest.mark.usefixtures("longest")
async def test_waits_grow_exponentially_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch, DOWN) as scene:
        await scene.clock.passes(200)
        assert scene.waits[:4] == pytest.approx([1.0, 1.5, 2.25, 3.375])
        assert scene.waits[-3:] == pytest.approx([LONGEST_WAIT] * 3)


async def test_link_never_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch, DOWN) as scene:
        await scene.clock.passes(1800)
        assert 1800 / LONGEST_WAIT <= len(scene.attempts) <= 1800 / LONGEST_WAIT * 2 + 20
        scene.error = None
        await scene.clock.passes(LONGEST_WAIT)
        assert scene.link.session is scene.sessions[0]


async def test_waits_are_random(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[float, float]] = []

    def middle(least: float, most: float) -> float:
        asked.append((least, most))
        return (least + most) / 2

    monkeypatch.setattr(random, "uniform", middle)
    async with running(monkeypatch, DOWN) as scene:
        await scene.clock.passes(10)
        assert asked[:2] == [(FIRST_WAIT / 2, FIRST_WAIT), (0.75, 1.5)]
        assert scene.waits[:2] == pytest.approx([0.75, 1.125])


async def test_good_session_is_replaced_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch) as scene:
        await scene.clock.passes(GOOD_TIME)
        await scene.ends()
        assert len(scene.sessions) == 2
        assert scene.link.session is scene.sessions[1]
        assert scene.waits == [GOOD_TIME]


@pytest.mark.usefixtures("longest")
async def test_good_session_resets_the_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch, DOWN) as scene:
        await scene.clock.passes(100)
        scene.error = None
        await scene.clock.passes(LONGEST_WAIT + GOOD_TIME)
        scene.error = DOWN
        scene.attempts.clear()
        await scene.ends()
        await scene.clock.passes(4)
        assert scene.waits == pytest.approx([1.0, 1.5])


@pytest.mark.usefixtures("longest")
async def test_gateway_that_ends_each_session_is_not_called_in_a_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running(monkeypatch) as scene:
        for _ in range(12):
            await scene.ends()
            count = len(scene.attempts)
            await scene.clock.until(lambda: len(scene.attempts) > count)  # noqa: B023
        assert scene.waits[:3] == pytest.approx([1.0, 1.5, 2.25])
        assert scene.waits[-1] == LONGEST_WAIT


@pytest.mark.usefixtures("longest")
async def test_session_that_is_lost_before_it_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)

    async def connect(on_end: Callable[[], object]) -> Session:
        session = await scene._connect(on_end)
        session.abort(PeerError("smux: version 9"))
        return session

    scene.link = Link(GATEWAY, connect)
    with logged() as lines:
        scene.link.start()
        await scene.clock.passes(0.4)
        assert len(scene.attempts) == 1
        assert scene.link.session is None
        await scene.clock.passes(1)
        assert len(scene.attempts) == 2
        await scene.link.stop()
    assert lines[1].endswith(f"disconnected from the gateway {GATEWAY}: smux: version 9")


async def test_fault_of_the_program_does_not_end_the_link(monkeypatch: pytest.MonkeyPatch) -> None:
    with logged() as lines:
        async with running(monkeypatch, RuntimeError("a bug")) as scene:
            scene.error = None
            await scene.clock.passes(FIRST_WAIT)
            assert scene.link.session is not None
    assert "internal error: a bug" in lines[0]


async def test_fault_while_a_session_is_watched_replaces_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with logged() as lines:
        async with running(monkeypatch) as scene:
            monkeypatch.setattr(link_module, "SIGN_TIME", "a bug")
            scene.sessions[0].answers = False
            scene.route = "198.51.100.1"
            await scene.clock.until(lambda: len(scene.sessions) == 2)
            assert scene.sessions[0].lost
            assert scene.link.session is scene.sessions[1]
    assert "internal error: '>=' not supported" in lines[1]


# What is logged.


async def test_each_reason_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with logged() as lines:
        async with running(monkeypatch, DOWN) as scene:
            await scene.clock.passes(200)
            scene.error = NetworkError("timed out")
            await scene.clock.passes(200)
            scene.error = DOWN
            await scene.clock.passes(200)
            assert lines == [
                "WARNING no session with the gateway, trying again: connection refused",
                "WARNING no session with the gateway, trying again: timed out",
            ]
            # After a session the story begins anew.
            scene.error = None
            await scene.clock.passes(LONGEST_WAIT)
            scene.error = DOWN
            await scene.ends(NetworkError("reset"))
            await scene.clock.passes(200)
    assert lines[2:] == [
        "INFO connected to the gateway gateway.example:443",
        "WARNING disconnected from the gateway gateway.example:443: reset",
        "WARNING no session with the gateway, trying again: connection refused",
    ]


async def test_reasons_that_always_change_take_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "MAX_REASONS", 3)
    async with running(monkeypatch, DOWN) as scene:
        for number in range(9):
            scene.error = PeerError(f"reason {number}")
            await scene.clock.passes(LONGEST_WAIT)
        assert len(scene.link._reasons) == 3


@pytest.mark.usefixtures("longest")
async def test_refusal_is_followed_by_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = RefusedError("the gateway refuses this agent: 403, wrong group password")
    with logged() as lines:
        async with running(monkeypatch, refused) as scene:
            await scene.clock.passes(100)
            assert scene.waits == pytest.approx([LONGEST_WAIT] * 3)
            scene.error = None
            await scene.clock.passes(LONGEST_WAIT)
            assert scene.link.session is not None
    assert lines == [
        f"WARNING no session with the gateway, trying again: {refused}",
        "INFO connected to the gateway gateway.example:443",
    ]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("set -pin to it, or -ca to that", "set pin to it, or ca to that"),
        ("the server wants one: set -cert and -key", ": set client_cert and client_key"),
        ("(-cert): not in the server's -client-ca", "(client_cert): not in the server's client_ca"),
        ("the full chain as the server's -cert", "the server's tls_cert"),
        ("set -n to a name", "set server_name to a name"),
        ("pre-set -x, a-pin", "pre-set -x, a-pin"),
    ],
)
async def test_failures_name_keys_of_the_file(
    text: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with logged() as lines:
        async with running(monkeypatch, PeerError(text)):
            pass
    assert shown in lines[0]


# Stopping.


async def test_stop_leaves_the_session_and_makes_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch) as scene:
        await scene.link.stop()
        assert not scene.sessions[0].lost
        await scene.ends()
        await scene.clock.passes(100)
        assert len(scene.sessions) == 1


async def test_stop_while_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch, DOWN) as scene:
        await scene.link.stop()
        await scene.clock.passes(100)
        assert len(scene.attempts) == 1


async def test_stop_while_connecting(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []

    async def connect(_: Callable[[], object]) -> Session:
        try:
            await asyncio.get_running_loop().create_future()
            raise AssertionError
        finally:
            ended.append("cancelled")

    link = Link(GATEWAY, connect)
    link.start()
    await turns()
    await link.stop()
    assert ended == ["cancelled"]
    await link.stop()


async def test_stop_before_the_start() -> None:
    async def connect(_: Callable[[], object]) -> Session:
        raise MttError

    await Link(GATEWAY, connect).stop()
