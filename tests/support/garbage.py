"""What only the garbage collector can free: reference cycles that connections leave behind.

A process that carries thousands of connections runs a full collection rarely, and until then each
of them keeps its TLS objects with OpenSSL's buffers in them. So nothing that is made for a
connection may be part of a cycle once the connection is over.
"""

from __future__ import annotations

import contextlib
import gc
import types
from collections import Counter
from collections.abc import Iterator
from typing import Any

# Objects of these packages count: who keeps one of OpenSSL's is among them.
OURS = ("mtt", "mtt_mu_server", "anytls", "anyproxy", "plugin")


@contextlib.contextmanager
def collector_off() -> Iterator[Counter[str]]:
    """Run a block without garbage collection; afterwards the yielded counter has what it left.

    That is how many objects of each kind were unreachable, but part of a cycle.
    """
    left: Counter[str] = Counter()
    was_enabled, flags = gc.isenabled(), gc.get_debug()
    gc.collect()
    gc.disable()
    try:
        yield left
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        left.update(name for found in gc.garbage if (name := _ours(found)))
    finally:
        gc.set_debug(flags)
        gc.garbage.clear()
        if was_enabled:
            gc.enable()


def _ours(found: Any) -> str:
    """What an unreachable object is if it is the product's, otherwise an empty text."""
    if isinstance(found, types.FrameType):
        module, name = found.f_globals.get("__name__", ""), found.f_code.co_qualname
    elif isinstance(found, types.FunctionType | types.MethodType):
        module, name = found.__module__ or "", found.__qualname__
    else:
        module, name = type(found).__module__, type(found).__qualname__
    return f"{module}.{name}" if module.partition(".")[0] in OURS else ""
