"""The command anytls-server."""

from __future__ import annotations

# ruff: noqa: I001  (first things first)
import plugin.early  # noqa: F401

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from anytls.options import SERVER_FLAGS, server_options
from mtt.options.flags import Values
from plugin.command import Command, Start
from plugin.command import main as run

if TYPE_CHECKING:
    from mtt.process.runtime import Service


def service(values: Values, start: Start) -> Service:
    options = server_options(values, sockets=start.descriptors)

    from anytls.server import Server

    return Server(options)


COMMAND = Command(
    name="anytls-server",
    description="Carries TCP and UDP of AnyTLS clients to the destinations that -allow and -deny "
    "permit. Clients without a valid password see a web site.",
    flags=SERVER_FLAGS,
    service=service,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run anytls-server with the arguments `argv`, or this process's; returns an exit code."""
    return run(COMMAND, argv)


if __name__ == "__main__":
    sys.exit(main())
