"""What a command does before its other imports, which take some 50 ms."""

from __future__ import annotations

import os
import signal

# Whose death ends a plugin; one that dies while we still import would be missed.
PARENT = os.getppid()

_PROGRAMS = ("mtt", "anytls")  # how the names of our commands begin


def begin(program: str) -> None:
    """Let Ctrl-C end `program`, sys.argv[0], silently: in an import it would show a traceback.

    Does nothing if `program` is not a command of ours: one that merely imports a command has a
    handler of its own.
    """
    if os.path.basename(program).startswith(_PROGRAMS):
        signal.signal(signal.SIGINT, lambda *_: os._exit(0))
