"""How tunnels between our own ends come to an end, and that nothing is lost by it."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from mtt.layers.base import Data, StreamTransport
from mtt.layers.parked import Parked
from mtt.layers.tcp import SocketTransport
from mtt.tunnels.relay import Relay
from tests.support.certs import Certs
from tests.support.tunnels import (
    MEGABYTE,
    MODES,
    Tcp,
    clock_of_tunnels,
    connect,
    eventually,
    in_every_mode,
    joined,
    listening,
    maybe_reset,
    tunnel,
    unsent,
)

# Seconds: longer than QUIET_TIME and END_TIME of a relay and LINGER_TIME together.
LONG = 10.0


@in_every_mode
async def test_what_the_destination_sent_before_its_close_arrives(
    mode: str, certs: Certs, short_quiet: None
) -> None:
    async with listening() as there, joined(mode, there, certs) as (application, destination):

        async def download() -> None:
            await destination.send(MEGABYTE)
            destination.close()

        _, received = await asyncio.gather(download(), application.rest())
        assert received == MEGABYTE


@in_every_mode
async def test_what_the_application_sent_before_its_close_arrives(
    mode: str, certs: Certs, short_quiet: None
) -> None:
    async with listening() as there, tunnel(mode, there.port, certs) as port:
        application = await connect(port)
        destination = await there.accept()

        async def upload() -> None:
            await application.send(MEGABYTE)
            application.close()

        _, received = await asyncio.gather(upload(), destination.rest())
        assert received == MEGABYTE


async def test_a_reply_may_come_long_after_the_end_of_the_request(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = clock_of_tunnels(monkeypatch)

    async def one(mode: str) -> None:
        async with listening() as there, joined(mode, there, certs) as (application, destination):
            await application.send(b"request")
            await application.finish()
            assert await destination.rest() == b"request", mode
            await clock.passes(LONG)
            _, received = await asyncio.gather(_send_all(destination), application.rest())
            assert received == MEGABYTE, mode

    for mode in MODES:
        await one(mode)


async def test_an_upload_may_go_on_long_after_the_end_of_the_download(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = clock_of_tunnels(monkeypatch)

    async def one(mode: str) -> None:
        async with listening() as there, joined(mode, there, certs) as (application, destination):
            await destination.send(b"enough said")
            await destination.finish()
            assert await application.rest() == b"enough said", mode
            await clock.passes(LONG)
            _, received = await asyncio.gather(_send_all(application), destination.rest())
            assert received == MEGABYTE, mode

    for mode in MODES:
        await one(mode)


async def _send_all(end: Tcp) -> None:
    await end.send(MEGABYTE)
    await end.finish()


class Clogged(StreamTransport):
    """A transport whose other side does not read, for now."""

    def __init__(self) -> None:
        super().__init__()
        self.upper: Any = None
        self.written = bytearray()
        self.finished = False
        self.paused = False

    def write(self, data: Data | bytearray) -> None:
        if not self.written:
            self.upper.pause_writing()
        self.written += data

    def half_closes(self) -> bool | None:
        return True

    def unsent(self) -> int:
        return 0

    def write_eof(self) -> None:
        self.finished = True

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def close(self) -> None:
        asyncio.get_running_loop().call_soon(self.upper.connection_lost, None)

    def cut(self) -> None:
        self.close()

    def abort(self) -> None:
        self.close()


async def test_upload_arrives_though_its_answers_cannot(short_linger: None) -> None:
    """The application has said all and closed, so its kernel answers ours with RST."""
    upload = MEGABYTE[: 160 * 1024]
    listener = socket.create_server(("127.0.0.1", 0))
    # Room for all of it, however little is read; accepted sockets inherit that.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2 * len(upload))
    with listener:
        application = await connect(listener.getsockname()[1])
        accepted, _ = listener.accept()
    accepted.setblocking(False)
    async with application:
        far = Clogged()
        done = asyncio.Event()
        near = SocketTransport(accepted, Parked())
        Relay(near, far, timeout=60, done=lambda _: done.set())
        await application.send(upload)
        await eventually(lambda: not unsent(application))
        application.close()
        assert len(far.written) < len(upload)
        while not far.paused:  # writing to the application has failed
            far.upper.data_received(b"thank you")
            await asyncio.sleep(0.01)
        assert len(far.written) < len(upload)
        assert not done.is_set()
        far.upper.resume_writing()
        await done.wait()
        assert far.written == upload
        assert far.finished


@in_every_mode
@pytest.mark.parametrize("talking", ["application", "destination", "neither"])
async def test_the_idle_timeout_counts_both_directions(
    talking: str, mode: str, certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    timeout = 4.0
    clock = clock_of_tunnels(monkeypatch)
    async with (
        listening() as there,
        tunnel(mode, there.port, certs, timeout=timeout) as port,
        await connect(port) as application,
    ):
        ends = [application, await there.accept()]
        if talking == "destination":
            ends.reverse()
        for _ in range(8 if talking != "neither" else 0):
            await ends[0].send(b".")
            assert await ends[1].exactly(1) == b"."
            await clock.passes(timeout / 4)
        rest = [asyncio.create_task(end.rest()) for end in ends]
        await clock.passes(timeout / 2)
        assert not any(task.done() for task in rest)
        await clock.passes(timeout)
        for task in rest:
            with maybe_reset():
                assert await task == b""
