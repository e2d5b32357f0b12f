"""Agents at rest: what each costs a gateway."""

from __future__ import annotations

import os
import time

from bench.gateway import Pair, our_command, pair
from bench.loads import SETTLE_TIME, SOCKET_TIME, Sample, Scene
from bench.processes import BenchError

# Sessions of one agent, our limit.
MAX_REPLICAS = 64


def measure_agents(scene: Scene) -> Sample:
    """What agents at rest cost the gateway: KB each, and CPU for their signs of life."""
    count = scene.effort.agents
    with pair(scene, our_command) as both:
        before, _ = both.resident()
        for number, first in enumerate(range(0, count, MAX_REPLICAS)):
            replicas = min(MAX_REPLICAS, count - first)
            text = both.agent_config.replace("id: bench", f"id: more-{number}")
            file = scene.directory / f"more-{number}.yaml"
            file.touch(mode=0o600)
            file.write_text(text.replace("replicas: 1", f"replicas: {replicas}"))
            scene.programs.start(our_command(file, "client"))
        _wait_for_sessions(both, count)
        size, _ = both.resident()
        start = both.used()[0]
        time.sleep(scene.effort.rest)
        used = both.used()[0] - start
        both.gateway.check()
    return {
        "agent_kb": (size - before) / count / 1024,
        "agent_ms": used / scene.effort.rest / count * 60 * 1e3,
    }


def _wait_for_sessions(both: Pair, count: int) -> None:
    """Wait until the gateway has so many more connections from agents."""
    until = time.monotonic() + 6 * SOCKET_TIME
    while len(os.listdir(f"/proc/{both.gateway.pid}/fd")) < count:
        both.gateway.check()
        if time.monotonic() > until:
            raise BenchError(f"not all of {count} agents joined")
        time.sleep(SETTLE_TIME)
    time.sleep(5 * SETTLE_TIME)  # their handshakes
