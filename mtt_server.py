"""mtt-server: accepts the TLS connections of mtt-clients and forwards what they carry."""

from __future__ import annotations

# ruff: noqa: E402  (first things first)
import os
import sys

from mtt.process import early

early.begin(sys.argv[0])

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mtt.options.flags import Values
from mtt.options.process import CONFIG
from mtt.options.tunnel import SERVER_FLAGS, server_options
from mtt.process.command import Command, Prepared, Start, completed
from mtt.process.command import main as run
from plugin.sip003 import PluginEnvironment, Sip003

if TYPE_CHECKING:
    from mtt.options.links import Link, Login
    from mtt.process.runtime import Service


def prepare(values: Values, start: Start) -> Prepared:
    options = server_options(values, plugin=start.plugin, sockets=start.descriptors)

    def make() -> Service:
        from mtt.server import Server

        return Server(options)

    return Prepared(options, make)


def service(values: Values, start: Start) -> Service:
    if CONFIG.name in values:
        from mtt.configured.service import ConfiguredTunnels

        return ConfiguredTunnels(values, start, prepare)
    return prepare(values, start).make()


def links(values: Values, login: Login | None) -> Sequence[Link]:
    from mtt.options import links
    from mtt.options.tunnel import CLIENT_FLAGS

    # Placeholders for required options that do not affect clients.
    unknown = {} if values.get("bind-unix") else {"b": f":{links.DEFAULT_PORT}"}
    options = server_options({"d": links.DEFAULT_LOCAL} | unknown | values)
    trust = links.trust_of(options.tls)
    server = links.server_address(values.get("link-server", ""), trust, options.bind)
    client = links.client_values(options, server, trust)
    return links.tunnel_links(CLIENT_FLAGS, client, server, login)


def addresses(shadowsocks: PluginEnvironment) -> Values:
    return {"b": str(shadowsocks.remote), "d": str(shadowsocks.local)}


COMMAND = Command(
    name="mtt-server",
    summary="TLS tunnel, server",
    description="Accepts TLS connections from mtt-clients and forwards each connection they carry "
    "to one destination. Also a SIP003 plugin of shadowsocks servers.",
    flags=SERVER_FLAGS,
    service=service,
    plugin=Sip003(addresses),
    complete=completed(SERVER_FLAGS),
    links=links,
    examples=(
        (
            "Forward port 443 to a service on this machine; generate a certificate in DIR",
            "mtt-server -b :443 -d 127.0.0.1:8080 -cert-dir DIR",
        ),
        (
            "The same over HTTPS, with a web site for all other visitors",
            "mtt-server -b :443 -d 127.0.0.1:8080 -wss -wss-path /secret "
            "-fallback 127.0.0.1:80 -cert fullchain.pem -key privkey.pem",
        ),
    ),
)


def main() -> int:
    """Run mtt-server with this process's arguments; returns an exit code."""
    return run(COMMAND, sys.argv[1:], os.environ)


if __name__ == "__main__":
    sys.exit(main())
