"""The command anytls-client."""

from __future__ import annotations

# ruff: noqa: I001  (first things first)
import plugin.early  # noqa: F401

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from anytls.options import CLIENT_FLAGS, client_options
from mtt.options.flags import Values
from plugin.command import Command, Start
from plugin.command import main as run

if TYPE_CHECKING:
    from mtt.process.runtime import Service


def service(values: Values, start: Start) -> Service:
    options = client_options(values, sockets=start.descriptors)

    from anytls.client import Client

    return Client(options)


COMMAND = Command(
    name="anytls-client",
    description="A local SOCKS and HTTP proxy. It carries TCP and UDP to an AnyTLS server, which "
    "connects to the destinations.",
    flags=CLIENT_FLAGS,
    service=service,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run anytls-client with the arguments `argv`, or this process's; returns an exit code."""
    return run(COMMAND, argv)


if __name__ == "__main__":
    sys.exit(main())
