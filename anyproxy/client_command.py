"""The command anyproxy-client."""

from __future__ import annotations

# ruff: noqa: E402  (first things first)
import os
import sys

from mtt.process import early

early.begin(sys.argv[0])

from typing import TYPE_CHECKING

from anyproxy import config
from anyproxy.config import FLAGS, with_file
from mtt.options.flags import Values
from mtt.process.command import Command, Start
from mtt.process.command import main as run

if TYPE_CHECKING:
    from mtt.process.runtime import Service


def service(values: Values, start: Start) -> Service:
    from anyproxy.client_config import agent_options

    options = agent_options(values)

    from functools import partial

    from anyproxy.agent import Agent
    from anyproxy.agent_reload import apply
    from mtt.process.configuration import Configuration

    agent = Agent(options)
    if options.web is not None:
        from anyproxy.web_views import add_to_agent

        add_to_agent(agent, options.web)
    reread = start.reread
    assert reread is not None
    agent.configuration = Configuration(
        config.path_of(values), reread, values, agent_options, partial(apply, agent)
    )
    return agent


COMMAND = Command(
    name="anyproxy-client",
    summary="agent of a gateway into private networks",
    description="An agent of a gateway (anyproxy-gateway). It makes the connections of the "
    "gateway's users, to targets that its rules allow.",
    flags=FLAGS,
    service=service,
    complete=with_file,
    examples=(
        (
            "Connect to the gateways in the file",
            "anyproxy-client -config client.yaml",
        ),
        (
            "Check a changed file before a restart",
            "anyproxy-client -config client.yaml -check",
        ),
    ),
)


def main() -> int:
    """Run anyproxy-client with this process's arguments; returns an exit code."""
    return run(COMMAND, sys.argv[1:], os.environ)


if __name__ == "__main__":
    sys.exit(main())
