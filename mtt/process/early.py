"""What a command does before its other imports, which take some 50 ms."""

from __future__ import annotations

import os
import signal

# The parent, whose end ends a plugin. Read early, so that its end during the imports is noticed.
PARENT = os.getppid()

_PROGRAMS = ("mtt", "anytls", "anyproxy")  # prefixes of the commands' names


def begin(program: str) -> None:
    """Make Ctrl-C end `program` (sys.argv[0]) silently; during imports it shows a traceback.

    Does nothing in a program that only imports a command: it has its own handler.
    """
    if os.path.basename(program).startswith(_PROGRAMS):
        signal.signal(signal.SIGINT, lambda *_: os._exit(0))
