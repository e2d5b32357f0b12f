"""All commands, for the tools that generate manual pages and completions."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import mtt_client
import mtt_server
from anyproxy import client_command as agent
from anyproxy import gateway_command as gateway
from anytls import client_command as anytls_client
from anytls import server_command as anytls_server
from mtt_mu_server import __main__ as multi_user

COMMANDS = {
    module.COMMAND.name: module.COMMAND
    for module in (
        mtt_client, mtt_server, multi_user, anytls_client, anytls_server, agent, gateway,
    )
}  # fmt: skip


def write_output(tool: str, write: Callable[[Path], None]) -> int:
    """Write to the directory on the command line of `tool`; returns an exit code."""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print(f"usage: python -m tools.{tool} OUTDIR", file=sys.stderr)
        return 2
    write(Path(sys.argv[1]))
    return 0
