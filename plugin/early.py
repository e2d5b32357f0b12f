"""What a command does before its imports, which take some 50 ms."""

from __future__ import annotations

import os
import signal
import sys

# Whose death ends a plugin; one that dies while we still import would be missed.
PARENT = os.getppid()

# Ctrl-C in the middle of an import would show a traceback. Only where this process is one of our
# commands: whoever merely imports them has a handler of their own.
if os.path.basename(sys.argv[0]).startswith(("mtt", "anytls")):
    signal.signal(signal.SIGINT, lambda *_: os._exit(0))
