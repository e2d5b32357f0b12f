"""Simulates agents of many machines in one process: `python -m bench.crowd FILE NAME N`.

FILE is the configuration of an agent. The process keeps N sessions with its gateway, as agents
called NAME-0, NAME-1, and so on, with up to MAX_REPLICAS sessions each.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace

from anyproxy.agent import Agent
from anyproxy.client_config import MAX_REPLICAS, agent_options
from anyproxy.config import with_file
from bench.processes import LOOK_INTERVAL


async def run(file: str, name: str, count: int) -> None:
    """Keep so many sessions, until the process is ended."""
    options = agent_options(with_file({"config": file}, {}))
    agents = [
        Agent(replace(options, id=f"{name}-{at}", replicas=min(MAX_REPLICAS, count - at)))
        for at in range(0, count, MAX_REPLICAS)
    ]
    for agent in agents:
        await agent.start()
        # One after the other: a gateway cuts handshakes above a limit, to be repeated later.
        while len(agent.open_sessions) < agent.options.replicas:
            await asyncio.sleep(LOOK_INTERVAL)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1], sys.argv[2], int(sys.argv[3])))
