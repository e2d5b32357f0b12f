"""Runs a gateway or an agent in a process of its own, from its options in `argv[1]`."""

from __future__ import annotations

import base64
import pickle
import sys
from typing import NoReturn

from anyproxy.agent import Agent
from anyproxy.gateway import Gateway
from anyproxy.options import AgentOptions, GatewayOptions
from mtt import log
from mtt.options.process import ProcessOptions
from mtt.process.runtime import run


def command(options: GatewayOptions | AgentOptions) -> tuple[str, ...]:
    """How to run the service that has these options."""
    return sys.executable, "-m", __name__, base64.b64encode(pickle.dumps(options)).decode()


def main(encoded: str) -> NoReturn:
    options = pickle.loads(base64.b64decode(encoded))
    is_gateway = isinstance(options, GatewayOptions)
    log.setup("debug", "gateway" if is_gateway else "agent")
    service = Gateway(options) if is_gateway else Agent(options)
    run(service, options=ProcessOptions(grace=0.0))


if __name__ == "__main__":
    main(sys.argv[1])
