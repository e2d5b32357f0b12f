from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from mtt.process import link as link_module
from mtt.process.link import Link, encode
from tests.support.tunnels import eventually, logged


class End:
    """One end, and what it heard."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.losses = 0
        self.link = Link(self.heard.append, self._lost)

    def _lost(self) -> None:
        self.losses += 1


async def pair() -> tuple[End, End]:
    ends = End(), End()
    for end, sock in zip(ends, socket.socketpair(), strict=True):
        end.link.connect(sock)
    return ends


async def test_messages_arrive_in_their_order() -> None:
    one, other = await pair()
    sent: list[list[Any]] = [["a"], ["\n\u20ac\U0001f600", 1, True, None], [{"k": [1.5]}]]
    for message in sent:
        one.link.send(*message)
    other.link.send("back")
    await eventually(lambda: one.heard)
    await one.link.close()
    await eventually(lambda: other.losses)
    assert (other.heard, one.heard) == (sent, [["back"]])
    assert one.losses == other.losses == 1
    other.link.send("not delivered")


async def test_a_large_message_waits_for_room() -> None:
    one, other = await pair()
    text = "x" * 3_000_000
    one.link.send(text)
    await one.link.drained()
    await eventually(lambda: other.heard == [[text]])
    await one.link.close()
    await eventually(lambda: other.losses)


@pytest.mark.parametrize("data", [b"{\n", b"[1\n", b"\xff\n", b"x" * 2000])
async def test_invalid_message_closes_the_link(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "MAX_MESSAGE", 1000)
    end = End()
    ours, theirs = socket.socketpair()
    end.link.connect(ours)
    with theirs, logged() as lines:
        theirs.sendall(encode("fine") + data)
        await eventually(lambda: end.losses)
    assert end.heard == [["fine"]]
    assert len(lines) == 1
    assert lines[0].startswith("ERROR invalid message from another process: ")


async def test_peer_that_never_reads_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "MAX_BACKLOG", 100_000)
    end = End()
    ours, theirs = socket.socketpair()
    end.link.connect(ours)
    with theirs:
        for _ in range(1000):
            end.link.send("x" * 1000)
        waiting = asyncio.create_task(end.link.drained())
        await eventually(lambda: end.losses)
        await waiting


async def test_close_does_not_wait_for_the_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "CLOSE_TIME", 0.05)
    end = End()
    ours, theirs = socket.socketpair()
    end.link.connect(ours)
    with theirs:
        end.link.send("x" * 1_000_000)
        await end.link.close()
        await eventually(lambda: end.losses)
