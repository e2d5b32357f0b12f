"""mtt-client: listens for applications and carries their connections to an mtt-server over TLS."""

from __future__ import annotations

# ruff: noqa: I001  (first things first)
import plugin.early  # noqa: F401

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mtt.options.flags import Values
from mtt.options.tunnel import CLIENT_FLAGS, client_options
from plugin.command import Command, Start
from plugin.command import main as run
from plugin.environment import PluginEnvironment

if TYPE_CHECKING:
    from mtt.process.runtime import Service


def service(values: Values, start: Start) -> Service:
    options = client_options(values, plugin=start.plugin, sockets=start.descriptors)

    from mtt.client import Client
    from plugin.vpn import VpnProtection

    return Client(options, protect=VpnProtection().protect if values.get("V") else None)


def addresses(shadowsocks: PluginEnvironment) -> Values:
    return {"b": str(shadowsocks.local), "s": str(shadowsocks.remote)}


COMMAND = Command(
    name="mtt-client",
    description="Listens for connections and carries each one inside TLS to an mtt-server, which "
    "forwards it to its destination. Also a SIP003 plugin of shadowsocks clients.",
    flags=CLIENT_FLAGS,
    service=service,
    addresses=addresses,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run mtt-client with the arguments `argv`, or those of this process; returns an exit code."""
    return run(COMMAND, argv)


if __name__ == "__main__":
    sys.exit(main())
