"""One of our commands, with a window: `python -m soak.watched FILE {} mtt-client ARGUMENTS...`.

On SIGUSR1 the process collects garbage, returns free memory to the system, and writes to FILE how
many asyncio tasks and how many objects it has. The JSON object gives constants of modules other
values. Everything else is the command as it is.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import importlib
import json
import os
import signal
import sys
from types import FrameType

MODULES = {
    "mtt-client": "mtt_client",
    "mtt-server": "mtt_server",
    "anytls-client": "anytls.client_command",
    "anytls-server": "anytls.server_command",
    "anyproxy-client": "anyproxy.client_command",
    "anyproxy-gateway": "anyproxy.gateway_command",
}


def watch(path: str) -> None:
    """Write the counts to `path` at every SIGUSR1."""

    def report(_number: int, _frame: FrameType | None) -> None:
        gc.collect()
        _give_back()
        counts = {"tasks": len(asyncio.all_tasks()), "objects": len(gc.get_objects())}
        with open(path + ".new", "w") as file:
            json.dump(counts, file)
        os.replace(path + ".new", path)

    signal.signal(signal.SIGUSR1, report)


def _give_back() -> None:
    """Let the C library return what it holds of freed memory: that is no leak."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if trim is not None:
        trim(0)


if __name__ == "__main__":
    watch(sys.argv[1])
    for constant, value in json.loads(sys.argv[2]).items():
        module, _, name = constant.rpartition(".")
        setattr(importlib.import_module(module), name, value)
    program = importlib.import_module(MODULES[sys.argv[3]])
    del sys.argv[1:4]
    sys.exit(program.main())
