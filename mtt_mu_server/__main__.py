"""The command mtt-mu-server."""

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
from mtt.process.command import Command, Prepared, Start, completed
from mtt.process.command import main as run
from mtt_mu_server.options import FLAGS, options

if TYPE_CHECKING:
    from mtt.address import Endpoint
    from mtt.options.links import Link, Login
    from mtt.process.runtime import Service


def prepare(values: Values, start: Start) -> Prepared:
    checked = options(values, start.sockets)

    def make() -> Service:
        from mtt_mu_server.server import MultiUserServer

        return MultiUserServer(checked)

    alone = [
        *_address(checked.controller, checked.controller_unix),
        *_address(checked.metrics, checked.metrics_unix),
        *([f"the database {checked.db}"] if checked.db else []),
    ]
    return Prepared(checked, make, tuple(alone))


def _address(endpoint: Endpoint | None, path: str) -> list[str]:
    """An address for operators, in words; none if the system chooses the port."""
    if endpoint is not None:
        return [f"the address {endpoint}"] if endpoint.port else []
    return [f"the socket {path}"] if path else []


def service(values: Values, start: Start) -> Service:
    if CONFIG.name in values:
        from mtt.configured.service import ConfiguredTunnels

        return ConfiguredTunnels(values, start, prepare)
    return prepare(values, start).make()


def links(values: Values, login: Login | None) -> Sequence[Link]:
    from mtt.errors import UsageError
    from mtt.options import links
    from mtt.options.tunnel import CLIENT_FLAGS

    path = values.get("link-path", "")
    if not path.startswith("/"):
        if path:
            raise UsageError("-link-path: the path of a user begins with /; write it like /PATH")
        raise UsageError("-link needs the path of a user: add -link-path /PATH")
    # Placeholders for required options that do not affect clients.
    unknown = {} if values.get("bind-unix") else {"b": f":{links.DEFAULT_PORT}"}
    checked = options({"c": "127.0.0.1:1"} | unknown | values)
    trust = links.trust_of(checked.tls)
    server = links.server_address(values.get("link-server", ""), trust, checked.bind)
    client = links.client_values(None, server, trust, path=path, udp=checked.udp_time > 0)
    return links.tunnel_links(CLIENT_FLAGS, client, server, login)


COMMAND = Command(
    name="mtt-mu-server",
    summary="TLS tunnel, server for many users",
    description="Accepts the WebSockets of mtt-clients with -wss and forwards each user's "
    "connections to that user's destination. Users are known by the path of their requests; "
    "they are added and removed over HTTP at -c.",
    flags=FLAGS,
    service=service,
    complete=completed(FLAGS, own=("metrics",)),
    links=links,
    examples=(
        (
            "Serve users from a database, with a controller on a unix socket",
            "mtt-mu-server -b :443 -cert fullchain.pem -key privkey.pem "
            "-c unix:/run/mtt-mu-server/control.sock -db users.sqlite",
        ),
        (
            "Run behind a web server that does TLS, with a controller on a port",
            "mtt-mu-server -b 127.0.0.1:8080 -disable-tls -c 127.0.0.1:8081 -db users.sqlite",
        ),
    ),
)


def main() -> int:
    """Run mtt-mu-server with this process's arguments; returns an exit code."""
    return run(COMMAND, sys.argv[1:], os.environ)


if __name__ == "__main__":
    sys.exit(main())
