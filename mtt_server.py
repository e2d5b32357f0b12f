"""mtt-server: accepts the TLS connections of mtt-clients and forwards what they carry."""

from __future__ import annotations

# ruff: noqa: I001  (first things first)
import plugin.early  # noqa: F401

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mtt.options.flags import Values
from mtt.options.tunnel import SERVER_FLAGS, server_options
from plugin.command import Command, Start
from plugin.command import main as run
from plugin.environment import PluginEnvironment

if TYPE_CHECKING:
    from mtt.process.runtime import Service


def service(values: Values, start: Start) -> Service:
    options = server_options(values, plugin=start.plugin, sockets=start.descriptors)

    from mtt.server import Server

    return Server(options)


def addresses(shadowsocks: PluginEnvironment) -> Values:
    return {"b": str(shadowsocks.remote), "d": str(shadowsocks.local)}


COMMAND = Command(
    name="mtt-server",
    description="Accepts TLS connections from mtt-clients and forwards each connection they carry "
    "to one destination. Also a SIP003 plugin of shadowsocks servers.",
    flags=SERVER_FLAGS,
    service=service,
    addresses=addresses,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run mtt-server with the arguments `argv`, or those of this process; returns an exit code."""
    return run(COMMAND, argv)


if __name__ == "__main__":
    sys.exit(main())
