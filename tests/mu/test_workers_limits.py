"""mtt-mu-server with several workers: limits hold over all of them. Real processes."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from pathlib import Path
from typing import Any

from tests.mu.two_workers import Server, in_both_modes, is_open, opened, start_client
from tests.support.processes import Processes, eventually
from tests.support.workers import (
    Echo,
    check_echo,
    connect,
    in_both,
    needs_proc,
    standing_still,
    workers_with_tunnels,
)

pytestmark = needs_proc


def carry(tunnels: list[socket.socket], size: int) -> list[float]:
    """Send `size` bytes through each of the tunnels to an echo at once.

    Returns the seconds until each had everything back, the first to end first.
    """
    began = time.monotonic()
    ends: list[float] = []

    def carry_one(tunnel: socket.socket) -> None:
        threading.Thread(target=tunnel.sendall, args=(bytes(size),), daemon=True).start()
        left = size
        while left:
            data = tunnel.recv(left)
            assert data, "the tunnel has ended"
            left -= len(data)
        ends.append(time.monotonic() - began)

    threads = [threading.Thread(target=carry_one, args=(tunnel,)) for tunnel in tunnels]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ends


@in_both_modes
def test_a_limit_on_connections_holds_over_all_workers(
    processes: Processes, echo: Echo, tmp_path: Path, mode: tuple[str, ...]
) -> None:
    limit = 5
    server = Server(processes, tmp_path)
    server.add("/a", echo, max_conns=limit)
    if mode:  # several sessions, so that both workers have some
        mode = (*mode, "-mux-max-stream", "2", "-mux-warm", "0", "-mux-idle", "100ms")
    ports = [start_client(processes, server, "/a", *mode) for _ in range(2)]
    for _ in range(5):
        with contextlib.ExitStack() as stack:
            tunnels: list[socket.socket | None] = []
            for number, port in enumerate(ports, 1):  # one in each worker
                with standing_still(server.worker(number)):
                    tunnels.append(stack.enter_context(connect(port)))
                    check_echo(tunnels[-1])
            # All at once, so that workers have to decide at the same moment.
            tunnels += [opened(stack, ports[n % 2]) for n in range(4 * limit)]
            # Those of a session that was let in and cut again come to nothing in one worker
            # while the other still has room, so fewer may be in at first, and never more.
            works = [tunnel for tunnel in tunnels if is_open(tunnel)]
            assert 1 <= len(works) <= limit
            assert server.statistics("/a")["open_conns"] == len(works)

            def fill(stack: contextlib.ExitStack = stack, works: list[Any] = works) -> bool:
                for port in ports if len(works) < limit else ():
                    tunnel = opened(stack, port)
                    if is_open(tunnel):
                        works.append(tunnel)
                return len(works) == limit

            eventually(fill, "as many as may be")
            assert not any(is_open(opened(stack, port)) for port in ports * 3)
        eventually(lambda: server.statistics("/a")["open_conns"] == 0, "all are over")
        eventually(lambda: server.metrics()["sessions"] == 0, "all sessions are over")
    assert workers_with_tunnels(server.process) == {"1", "2"}


@in_both_modes
def test_a_rate_holds_over_all_workers(
    processes: Processes, tmp_path: Path, echo: Echo, mode: tuple[str, ...]
) -> None:
    rate, size = 400_000, 150_000
    server = Server(processes, tmp_path)
    server.add("/a", echo)
    port = start_client(processes, server, "/a", *mode)
    with contextlib.ExitStack() as stack:
        in_both(stack, server.process, port)
        server.add("/a", echo, rate=rate)
        tunnels = [stack.enter_context(connect(port)) for _ in range(6)]
        for tunnel in tunnels:
            check_echo(tunnel)
        # An echo goes up and down, each at that rate, so the whole takes as long as one of them.
        ideal = (len(tunnels) * size - rate * 0.25) / rate
        for tries in range(1, 4):
            ends = carry(tunnels, size)
            assert max(ends) >= ideal * 0.98
            # No tunnel is much faster: at best one alone in a worker gets the whole burst, and
            # then half of the rate.
            assert min(ends) >= 0.9 * (size - rate * 0.25) / (rate / 2)
            # Nor is the rate wasted, which would take twice as long, and that each time; a busy
            # machine does it now and then.
            if max(ends) <= ideal * 1.5 + 0.5:
                break
            assert tries < 3
