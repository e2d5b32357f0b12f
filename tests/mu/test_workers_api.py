"""The API of panels with several workers. Real processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any, BinaryIO

from mtt_mu_server.user import fingerprint
from tests.mu.two_workers import Server, ended, in_both_modes, is_open, start_client
from tests.support.processes import Processes, eventually
from tests.support.workers import Echo, check_echo, in_both, needs_proc, standing_still

pytestmark = needs_proc

A = f"/api/users/{fingerprint('/a')}"


def call(server: Server, method: str, target: str, **fields: Any) -> dict[str, Any]:
    body = json.dumps(fields).encode() if fields else b""
    answer = json.loads(server.ask(method, target, body))
    assert answer["res"] == 1, answer
    found = answer["user"]
    assert isinstance(found, dict)
    return found


def statuses(server: Server) -> set[int]:
    """What new connections get from both workers."""
    found = set()
    for number in (1, 2):
        with standing_still(server.worker(number)):
            found.add(server.upgrade("/a"))
    return found


@in_both_modes
def test_disabled_and_used_up_in_all_workers(
    processes: Processes, echo: Echo, tmp_path: Path, mode: tuple[str, ...]
) -> None:
    server = Server(processes, tmp_path)
    server.add("/a", echo)
    port = start_client(processes, server, "/a", *mode)
    with contextlib.ExitStack() as stack:
        tunnels = in_both(stack, server.process, port)
        assert call(server, "PATCH", A, enabled=False)["open_conns"] == len(tunnels)
        assert statuses(server) == {404}
        assert all(map(is_open, tunnels))
        assert call(server, "PATCH", A, enabled=True, quota=1)["state"] == "used up"
        for tunnel in tunnels:
            ended(tunnel)
    assert statuses(server) == {404}
    assert call(server, "POST", f"{A}/reset")["state"] == "active"
    assert statuses(server) == {101}


def test_new_worker_knows_who_is_disabled(
    processes: Processes, echo: Echo, tmp_path: Path
) -> None:
    server = Server(processes, tmp_path)
    server.add("/a", echo)
    call(server, "PATCH", A, enabled=False)
    killed = server.worker(1)
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: server.worker(1) != killed, "a new worker")
    assert statuses(server) == {404}
    path = call(server, "PATCH", A, path="/b")["path"]
    assert path == "/b"
    assert server.upgrade("/b") == 404
    call(server, "PATCH", f"/api/users/{fingerprint('/b')}", enabled=True)
    assert [server.upgrade("/b") for _ in range(4)] == [101] * 4
    assert server.upgrade("/a") == 404


def test_new_path_cuts_in_all_workers(processes: Processes, echo: Echo, tmp_path: Path) -> None:
    server = Server(processes, tmp_path)
    server.add("/a", echo)
    port = start_client(processes, server, "/a")
    with contextlib.ExitStack() as stack:
        tunnels = in_both(stack, server.process, port)
        for tunnel in tunnels:
            check_echo(tunnel)
        found = call(server, "PATCH", A, path="/b")
        for tunnel in tunnels:
            ended(tunnel)
    assert found["bytes_up"] == found["bytes_down"] == 20 * len(tunnels)


def event(stream: BinaryIO) -> tuple[str, dict[str, Any]]:
    """The next event of a stream."""
    name = ""
    while not (line := stream.readline()).startswith(b"data: "):
        if line.startswith(b"event: "):
            name = line[7:].decode().strip()
    return name, json.loads(line[6:])


def test_events_of_all_workers(processes: Processes, echo: Echo, tmp_path: Path) -> None:
    server = Server(processes, tmp_path)
    server.add("/a", echo, max_conns=100)
    port = start_client(processes, server, "/a")
    with contextlib.closing(server.connection()) as connection:
        connection.request("GET", "/api/events")
        stream = connection.getresponse()
        assert event(stream)[0] == "start"
        with contextlib.ExitStack() as stack:
            tunnels = in_both(stack, server.process, port)
            found = [event(stream) for _ in tunnels]
            assert {name for name, _ in found} == {"open"}
            assert len({fields["peer"] for _, fields in found}) == len(tunnels)
        found = [event(stream) for _ in tunnels]
        for name, fields in found:
            assert (name, fields["id"]) == ("end", fingerprint("/a"))
            assert (fields["bytes_up"], fields["bytes_down"]) == (10, 10)
            assert fields["peer"].startswith("127.0.0.1:")
            assert fields["reason"]
        call(server, "PATCH", A, enabled=False)
        assert server.upgrade("/a") == 404
        name, fields = event(stream)
        assert (name, fields["reason"]) == ("refused", "disabled")
