"""The command mtt-mu-server."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mtt.options.flags import Values
from mtt_mu_server.options import FLAGS, options
from plugin.command import Command, Start
from plugin.command import main as run

if TYPE_CHECKING:
    from mtt.process.runtime import Service


def service(values: Values, start: Start) -> Service:
    checked = options(values, start.sockets)

    from mtt_mu_server.server import MultiUserServer

    return MultiUserServer(checked)


COMMAND = Command(
    name="mtt-mu-server",
    description="Accepts the WebSockets of mtt-clients with -wss and forwards each user's "
    "connections to that user's destination. Users are known by the path of their requests; "
    "they are added and removed over HTTP at -c.",
    flags=FLAGS,
    service=service,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run mtt-mu-server with the arguments `argv`, or this process's; returns an exit code."""
    return run(COMMAND, argv)


if __name__ == "__main__":
    sys.exit(main())
