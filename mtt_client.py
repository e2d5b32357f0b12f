"""mtt-client: listens for applications and carries their connections to an mtt-server over TLS."""

from __future__ import annotations

# ruff: noqa: E402  (first things first)
import os
import sys

from mtt.process import early

early.begin(sys.argv[0])

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mtt.options.flags import Values
from mtt.options.process import CONFIG
from mtt.options.tunnel import CLIENT_FLAGS, client_options
from mtt.process.command import Command, Prepared, Start, completed
from mtt.process.command import main as run
from plugin.sip003 import PluginEnvironment, Sip003

if TYPE_CHECKING:
    from mtt.options.links import Link, Login
    from mtt.process.runtime import Service


def prepare(values: Values, start: Start) -> Prepared:
    options = client_options(values, plugin=start.plugin, sockets=start.descriptors)

    def make() -> Service:
        from mtt.client import Client
        from plugin.vpn import VpnProtection

        return Client(options, protect=VpnProtection().protect if values.get("V") else None)

    return Prepared(options, make)


def service(values: Values, start: Start) -> Service:
    if CONFIG.name in values:
        from mtt.configured.service import ConfiguredTunnels

        return ConfiguredTunnels(values, start, prepare)
    return prepare(values, start).make()


def links(values: Values, login: Login | None) -> Sequence[Link]:
    from mtt.options import links

    values = {"b": links.DEFAULT_LOCAL} | links.own_values(CLIENT_FLAGS, values)
    return links.tunnel_links(CLIENT_FLAGS, values, client_options(values).server, login)


def complete(values: Values, environ: Mapping[str, str]) -> Values:
    if not values.get("proxy"):
        return values
    from mtt.options.proxy import with_environment

    return with_environment(values, environ)


def addresses(shadowsocks: PluginEnvironment) -> Values:
    return {"b": str(shadowsocks.local), "s": str(shadowsocks.remote)}


COMMAND = Command(
    name="mtt-client",
    summary="TLS tunnel, client",
    description="Listens for connections and carries each one inside TLS to an mtt-server, which "
    "forwards it to its destination. Also a SIP003 plugin of shadowsocks clients.",
    flags=CLIENT_FLAGS,
    service=service,
    plugin=Sip003(addresses),
    links=links,
    examples=(
        (
            "Forward port 8080 of this machine to the server; trust the server's pin",
            "mtt-client -b 127.0.0.1:8080 -s example.com:443 -pin sha256/BASE64",
        ),
        (
            "The same over HTTPS, through a web server or CDN with a public certificate",
            "mtt-client -b 127.0.0.1:8080 -s example.com:443 -wss -wss-path /secret",
        ),
    ),
    complete=completed(CLIENT_FLAGS, complete),
)


def main() -> int:
    """Run mtt-client with this process's arguments; returns an exit code."""
    return run(COMMAND, sys.argv[1:], os.environ)


if __name__ == "__main__":
    sys.exit(main())
