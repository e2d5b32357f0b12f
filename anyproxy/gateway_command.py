"""The command anyproxy-gateway."""

from __future__ import annotations

# ruff: noqa: E402  (first things first)
import os
import sys

from mtt.process import early

early.begin(sys.argv[0])

from typing import TYPE_CHECKING

from anyproxy import config
from anyproxy.config import FLAGS, with_file
from mtt.options.flags import Values
from mtt.process.command import Command, Start
from mtt.process.command import main as run

if TYPE_CHECKING:
    from mtt.process.runtime import Service


def service(values: Values, start: Start) -> Service:
    from anyproxy.gateway_config import gateway_options

    options = gateway_options(values, sockets=start.descriptors)

    from functools import partial

    from anyproxy.gateway import Gateway
    from anyproxy.gateway_reload import apply
    from mtt.process.configuration import Configuration

    gateway = Gateway(options)
    if options.web is not None:
        from anyproxy.web_views import add_to_gateway

        add_to_gateway(gateway, options.web)
    reread = start.reread
    assert reread is not None
    gateway.configuration = Configuration(
        config.path_of(values),
        reread,
        values,
        partial(gateway_options, sockets=start.descriptors),
        partial(apply, gateway),
    )
    return gateway


COMMAND = Command(
    name="anyproxy-gateway",
    summary="gateway into private networks",
    description="HTTP and SOCKS5 proxies, and ports, whose connections are made by the agents "
    "(anyproxy-client) that connect to this gateway.",
    flags=FLAGS,
    service=service,
    complete=with_file,
    examples=(
        (
            "Serve the users and agents in the file",
            "anyproxy-gateway -config gateway.yaml",
        ),
        (
            "Also serve metrics, and log each connection",
            "anyproxy-gateway -config gateway.yaml -metrics 9100 -verbose",
        ),
    ),
)


def main() -> int:
    """Run anyproxy-gateway with this process's arguments; returns an exit code."""
    return run(COMMAND, sys.argv[1:], os.environ)


if __name__ == "__main__":
    sys.exit(main())
