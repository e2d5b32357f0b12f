"""Tunnels that fail: what had arrived is delivered first, the failure shows, and at once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from mtt.layers import linger
from mtt.tunnels import relay
from mtt.tunnels.service import Service
from tests.support.certs import Certs
from tests.support.faults import FaultProxy
from tests.support.gopeer import FIN, PSH, SYN, peer_connect, smux_frame, smux_read
from tests.support.tunnels import (
    SMALL,
    SOON,
    Listening,
    Tcp,
    cancel,
    client_of,
    clock_of_tunnels,
    connect,
    eventually,
    in_every_go_mode,
    in_every_mode,
    joined,
    listening,
    port_of,
    server_at,
    serving,
    settled,
)

# More than a reader with a small buffer takes, less than what our kernel holds for it.
DATA = bytes(range(256)) * 4000


def passed(service: Service) -> int:
    """Bytes that the only tunnel of `service` has taken from either side."""
    return service.open_tunnels.bytes_up + service.open_tunnels.bytes_down


@in_every_mode
@pytest.mark.parametrize("failure", ["destination", "line", "server"])
async def test_download_before_a_cut_is_delivered(
    failure: str, mode: str, certs: Certs
) -> None:
    async with (
        listening() as there,
        server_at(mode, there.port, certs) as server,
        FaultProxy(port_of(server)) as line,
        client_of(mode, line.port, certs) as client,
        await connect(port_of(client), buffer=SMALL) as application,
    ):
        destination = await there.accept()
        await destination.send(DATA)
        await eventually(lambda: passed(client) == len(DATA))
        if failure == "destination":
            destination.reset()
        elif failure == "line":
            line.reset_all()
        else:
            await server.close()
        await _gets_data_then_reset(application, client)


@in_every_mode
@pytest.mark.parametrize("failure", ["application", "line", "client"])
async def test_upload_before_a_cut_is_delivered(failure: str, mode: str, certs: Certs) -> None:
    async with (
        listening(buffer=SMALL) as there,
        server_at(mode, there.port, certs) as server,
        FaultProxy(port_of(server)) as line,
        client_of(mode, line.port, certs) as client,
        await connect(port_of(client)) as application,
    ):
        destination = await there.accept()
        await application.send(DATA)
        await eventually(lambda: passed(server) == len(DATA))
        if failure == "application":
            application.reset()
        elif failure == "line":
            line.reset_all()
        else:
            await client.close()
        await _gets_data_then_reset(destination, server)


async def _gets_data_then_reset(reader: Tcp, service: Service) -> None:
    """What waits in `service` when it learns of the failure, and is read then."""
    await eventually(lambda: all(tunnel.reason for tunnel in service.open_tunnels._carriers))
    await settled()
    received = b""
    with pytest.raises(ConnectionResetError):
        async with asyncio.timeout(SOON):
            while data := await reader.read():
                received += data
    assert received == DATA


class Hole:
    """Carries connections to `port`; `open` drops what clients send from then on.

    It acknowledges for both sides, as a proxy does, so that no end learns of it.
    """

    def __init__(self, port: int) -> None:
        self.open = False
        self._port = port

    async def carry(self, near: Tcp) -> None:
        async with await connect(self._port) as far:
            tasks = [
                asyncio.create_task(self._pump(near, far, up=True)),
                asyncio.create_task(self._pump(far, near, up=False)),
            ]
            try:
                await asyncio.gather(*tasks)
            except ConnectionResetError:
                near.reset()
            finally:
                await cancel(*tasks)

    async def _pump(self, source: Tcp, sink: Tcp, *, up: bool) -> None:
        while data := await source.read():
            if not (up and self.open):
                await sink.send(data)
        if not (up and self.open):
            await sink.finish()


@in_every_mode
async def test_reply_cut_by_the_idle_timer_looks_cut(
    mode: str, certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a part of the request arrives, so the destination sends only a part of its answer."""
    clock = clock_of_tunnels(monkeypatch)
    async with (
        listening() as there,
        server_at(mode, there.port, certs, timeout=4.0) as server,
        _through_hole(port_of(server)) as (hole, line),
        client_of(mode, line.port, certs, timeout=1000.0) as client,
        await connect(port_of(client)) as application,
    ):
        destination = await there.accept()
        await application.send(b"half a ")
        assert await destination.exactly(7) == b"half a "
        await destination.send(b"half an answer")
        assert await application.exactly(14) == b"half an answer"
        hole.open = True
        await application.send(b"request")
        await application.finish()
        end = asyncio.create_task(application.rest())
        start = clock.now
        await clock.until(end.done)
        assert clock.now - start < 100.0  # the server's timer, not the client's
        with pytest.raises(ConnectionResetError):
            await end


@contextlib.asynccontextmanager
async def _through_hole(port: int) -> AsyncIterator[tuple[Hole, Listening]]:
    hole = Hole(port)
    async with serving(hole.carry) as line:
        yield hole, line


@in_every_mode
@pytest.mark.parametrize("fin", [True, False])
async def test_refused_upload_resets_the_application_at_once(
    fin: bool, mode: str, certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linger, "LINGER_TIME", 3600.0)
    async with listening() as there, joined(mode, there, certs) as (application, destination):
        await application.send(DATA)
        await destination.exactly(len(DATA))
        if fin:
            await destination.send(b"413")
            await destination.finish()
            assert await application.rest() == b"413"
        destination.reset()
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            async with asyncio.timeout(SOON):
                while True:
                    await application.send(DATA)


@in_every_go_mode
@pytest.mark.parametrize("request_size", [0, 4, 20_000])
async def test_go_client_hears_of_an_end_without_a_wait(
    request_size: int, mode: str, certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "QUIET_TIME", 3600.0)
    request = bytes(request_size)

    async def answer(connection: Tcp) -> None:
        await connection.exactly(len(request))
        await connection.send(b"answer")

    async with (
        serving(answer) as there,
        server_at(mode, there.port, certs) as server,
        await peer_connect(mode, port_of(server), certs) as go,
        asyncio.timeout(SOON),
    ):
        if "mux" in mode:
            data = smux_frame(PSH, 3, request[:16384]) + smux_frame(PSH, 3, request[16384:])
            await go.send(smux_frame(SYN, 3) + data)
            assert await smux_read(go) == (PSH, 3, b"answer")
            assert await smux_read(go) == (FIN, 3, b"")
        else:
            if request:
                await go.send(request)
            assert await go.rest() == b"answer"


@in_every_go_mode
async def test_go_client_hears_of_an_end_without_an_answer(
    mode: str, certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "QUIET_TIME", 3600.0)

    async def refuse(connection: Tcp) -> None:
        await connection.exactly(7)

    async with (
        serving(refuse) as there,
        server_at(mode, there.port, certs) as server,
        await peer_connect(mode, port_of(server), certs) as go,
        asyncio.timeout(SOON),
    ):
        if "mux" in mode:
            await go.send(smux_frame(SYN, 3) + smux_frame(PSH, 3, b"request"))
            assert await smux_read(go) == (FIN, 3, b"")
        else:
            await go.send(b"request")
            assert await go.rest() == b""
