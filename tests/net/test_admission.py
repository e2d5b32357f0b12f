"""Limits on connections: who is let in, who has to go, and what the log says."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mtt.net.admission import Admission, Pending
from tests.support.certs import Certs
from tests.support.metrics import numbers
from tests.support.tunnels import (
    SOON,
    check_works,
    client_of,
    connect,
    echo,
    empty,
    eventually,
    in_every_mode,
    logged,
    port_of,
    server_at,
    serving,
)


class Connection(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.aborted = False

    def abort(self) -> None:
        self.aborted = True


def test_the_oldest_pending_connection_makes_room() -> None:
    pending = Pending(limit=2)
    connections = [Connection() for _ in range(4)]
    with logged() as lines:
        pending.add(connections[0])
        pending.add(connections[1])
        pending.discard(connections[0])
        pending.discard(connections[0])
        assert len(pending) == 1
        pending.add(connections[2])
        assert not any(connection.aborted for connection in connections)
        pending.add(connections[3])
    assert [connection.aborted for connection in connections] == [False, True, False, False]
    assert len(pending) == 2
    assert len(lines) == 1
    pending.close()
    assert [connection.aborted for connection in connections] == [False, True, True, True]


def test_admission_counts_only_when_there_is_a_limit() -> None:
    def count() -> int:
        return 3

    assert Admission(0, count).has_room()
    assert Admission(4, count).has_room()
    with logged() as lines:
        assert not Admission(3, count).has_room()
    assert lines == ["WARNING a tunnel was refused: -max-conns 3 is reached"]


def test_refusals_count_once() -> None:
    counts = iter((0, 1, 2, 3, 1, 2))
    admission = Admission(2, lambda: next(counts))
    accept = admission.guard(object)
    with logged() as lines:
        for _ in range(4):
            accept()
        for _ in range(2):
            admission.has_room()
    assert (admission.accepted, admission.refused, admission.tunnels_refused) == (2, 2, 1)
    assert lines == ["WARNING a connection was refused: -max-conns 2 is reached"]


@in_every_mode
@pytest.mark.parametrize("end", ["client", "server"])
async def test_connections_beyond_max_conns_are_reset_until_others_end(
    end: str, mode: str, certs: Certs
) -> None:
    # Under mux the server counts the session as well.
    limit: dict[str, Any] = {"max-conns": 3 if end == "server" and "mux" in mode else 2}
    async with (
        asyncio.timeout(SOON),
        serving(echo) as there,
        server_at(mode, there.port, certs, **(limit if end == "server" else {})) as server,
        client_of(mode, port_of(server), certs, **(limit if end == "client" else {})) as client,
    ):
        port = port_of(client)
        async with await connect(port) as one, await connect(port) as two:
            for application in (one, two):
                await application.send(b"in")
                assert await application.exactly(2) == b"in"
            with logged() as lines:
                async with await connect(port) as three:
                    with pytest.raises(ConnectionResetError):
                        await three.read()
            assert [line for line in lines if "-max-conns" in line]
            await two.finish()
            assert await two.rest() == b""
            ends = client.open_tunnels, server.open_tunnels
            await eventually(lambda: all(end.open == 1 for end in ends))
            await check_works(port)


async def test_silent_connections_do_not_exclude_other_clients(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pending.__init__, "__defaults__", (20,))
    async with (
        asyncio.timeout(SOON),
        serving(echo) as there,
        server_at("wss", there.port, certs) as server,
        client_of("wss", port_of(server), certs) as client,
    ):
        silent = [await connect(port_of(server)) for _ in range(60)]
        try:
            with logged() as lines:
                await check_works(port_of(client))
            assert not lines
            assert numbers(server)["handshakes"] <= 20
        finally:
            for connection in silent:
                connection.close()
        await eventually(lambda: empty(server))


def test_limit_of_all_tunnels_applies() -> None:
    numbers = {"one": 0, "all": 0}
    admission = Admission(2, lambda: numbers["one"])
    admission.above = Admission(3, lambda: numbers["all"])
    with logged() as lines:
        assert admission.has_room()
        numbers |= {"one": 1, "all": 3}
        assert not admission.has_room()
        admission.above.limit = 4
        assert admission.has_room()
        numbers |= {"one": 2}
        assert not admission.has_room()
    assert [line.split()[-4:] for line in lines] == [
        ["-max-conns", "3", "is", "reached"],
        ["-max-conns", "2", "is", "reached"],
    ]
    assert admission.tunnels_refused == 2
