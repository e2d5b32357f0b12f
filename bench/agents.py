"""Idle agents: memory and CPU of the gateway for each."""

from __future__ import annotations

import os
import sys
import time

from bench.gateway import Pair, our_command, pair
from bench.loads import SETTLE_TIME, Sample, Scene
from bench.processes import BenchError

# Sessions of one process that simulates agents. With fewer sessions in each, the processes would
# use more memory and CPU than the gateway.
CROWD = 1250
# Seconds until all have joined: a few milliseconds for each.
JOIN_TIME = 120.0


def measure_agents(scene: Scene) -> Sample:
    """The gateway's KB for each idle agent, and its CPU for their keepalives."""
    count = scene.effort.agents
    with pair(scene, our_command) as both:
        before, _ = both.resident()
        file = scene.directory / "client.yaml"
        for first in range(0, count, CROWD):
            size = str(min(CROWD, count - first))
            argv = [sys.executable, "-m", "bench.crowd", str(file), f"from-{first}", size]
            scene.programs.start(argv)
        _wait_for_sessions(both, count)
        resident, _ = both.resident()
        start = both.used()[0]
        time.sleep(scene.effort.rest)
        used = both.used()[0] - start
        both.gateway.check()
    return {
        "agent_kb": (resident - before) / count / 1024,
        "agent_ms": used / scene.effort.rest / count * 60 * 1e3,
    }


def _wait_for_sessions(both: Pair, count: int) -> None:
    """Wait until the gateway has so many more connections from agents."""
    until = time.monotonic() + JOIN_TIME
    while len(os.listdir(f"/proc/{both.gateway.pid}/fd")) < count:
        both.gateway.check()
        if time.monotonic() > until:
            raise BenchError(f"not all of {count} agents joined")
        time.sleep(SETTLE_TIME)
    time.sleep(5 * SETTLE_TIME)  # their handshakes
