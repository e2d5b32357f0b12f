"""The command anytls-server."""

from __future__ import annotations

# ruff: noqa: E402  (first things first)
import os
import sys

from mtt.process import early

early.begin(sys.argv[0])

from collections.abc import Sequence
from typing import TYPE_CHECKING

from anytls.options import SERVER_FLAGS, server_options
from mtt.options.flags import Values
from mtt.process.command import Command, Start
from mtt.process.command import main as run

if TYPE_CHECKING:
    from mtt.options.links import Link, Login
    from mtt.process.runtime import Service


def service(values: Values, start: Start) -> Service:
    options = server_options(values, sockets=start.descriptors)

    from anytls.server import Server

    return Server(options)


def links(values: Values, _: Login | None) -> Sequence[Link]:
    from anytls.links import of_server

    return of_server(values)


COMMAND = Command(
    name="anytls-server",
    summary="AnyTLS proxy, server",
    description="Carries TCP and UDP of AnyTLS clients to the destinations that -allow and -deny "
    "permit. Clients without a valid password see the fallback site.",
    flags=SERVER_FLAGS,
    service=service,
    links=links,
    examples=(
        (
            "Serve one user on port 8443; generate a certificate in DIR",
            "anytls-server -password-file password -cert-dir DIR",
        ),
        (
            "Serve many users on port 443, with a web site for all other visitors",
            "anytls-server -b :443 -users users -fallback 127.0.0.1:80 "
            "-cert fullchain.pem -key privkey.pem",
        ),
    ),
)


def main() -> int:
    """Run anytls-server with this process's arguments; returns an exit code."""
    return run(COMMAND, sys.argv[1:], os.environ)


if __name__ == "__main__":
    sys.exit(main())
