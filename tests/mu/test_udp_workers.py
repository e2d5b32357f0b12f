"""UDP of users of a multi-user server with two workers."""

from __future__ import annotations

from pathlib import Path

from tests.mu.two_workers import Server, start_client
from tests.real.datagrams import application, echo, udp_server
from tests.support.processes import Processes, eventually
from tests.support.workers import needs_proc

pytestmark = needs_proc


def test_rates_and_counters_are_those_of_all_workers(
    processes: Processes, tmp_path: Path
) -> None:
    server = Server(processes, tmp_path, "-udp")
    with udp_server(echo) as destination:
        user = {"path": "/a", "dst": f"127.0.0.1:{destination}", "rate": 1_000_000}
        assert server.command(1, user) == {"res": 1}
        for _ in range(2):
            port = start_client(processes, server, "/a", "-mux", "-udp")
            with application(port) as sock:
                for number in range(30):
                    sock.send(number.to_bytes(1000, "big"))
                    assert sock.recv(2000) == number.to_bytes(1000, "big")
        eventually(lambda: server.statistics("/a")["bytes_up"] == 60_000, "all bytes count")
        assert server.metrics()["udp_flows_opened_total"] == 2
