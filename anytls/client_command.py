"""The command anytls-client."""

from __future__ import annotations

# ruff: noqa: E402  (first things first)
import os
import sys

from mtt.process import early

early.begin(sys.argv[0])

from collections.abc import Sequence
from typing import TYPE_CHECKING

from anytls.options import CLIENT_FLAGS, client_options
from mtt.options.flags import Values
from mtt.options.proxy import with_environment
from mtt.process.command import Command, Start
from mtt.process.command import main as run

if TYPE_CHECKING:
    from mtt.options.links import Link, Login
    from mtt.process.runtime import Service


def service(values: Values, start: Start) -> Service:
    options = client_options(values, sockets=start.descriptors)

    from anytls.client import Client

    return Client(options)


def links(values: Values, _: Login | None) -> Sequence[Link]:
    from anytls.links import of_client

    return of_client(values)


COMMAND = Command(
    name="anytls-client",
    summary="AnyTLS proxy, client",
    description="A local SOCKS and HTTP proxy. It carries TCP and UDP to an AnyTLS server, which "
    "connects to the destinations.",
    flags=CLIENT_FLAGS,
    service=service,
    links=links,
    complete=with_environment,
    examples=(
        (
            "Open a proxy on port 1080 of this machine; trust the server's pin",
            "anytls-client -s example.com:8443 -password-file password -pin sha256/BASE64",
        ),
        (
            "Use the configuration of sing-box or Xray",
            "anytls-client -config config.json",
        ),
    ),
)


def main() -> int:
    """Run anytls-client with this process's arguments; returns an exit code."""
    return run(COMMAND, sys.argv[1:], os.environ)


if __name__ == "__main__":
    sys.exit(main())
