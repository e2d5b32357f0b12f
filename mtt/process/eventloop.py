"""The choice of the event loop, and its handler for unhandled errors."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from mtt.errors import UsageError, describe
from mtt.log import logger


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """The factory of the event loop `name`: auto, asyncio or uvloop.

    Raises UsageError if it is not installed.
    """
    if name != "asyncio":
        try:
            import uvloop
        except ImportError:
            if name == "uvloop":
                raise UsageError(
                    "-loop uvloop: the Python package uvloop is not installed; install it, "
                    "or use -loop auto"
                ) from None
        else:
            made_by: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
            return made_by
    # The default loop, except on Windows: the proactor loop keeps a receive buffer per connection
    # until data arrives, but all connections here share one buffer, used only to read present data.
    return asyncio.SelectorEventLoop


def report_error(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """The loop's exception handler: logs one line, and a traceback only at level debug."""
    error = context.get("exception")
    # A transport also passes its error to connection_lost(), where it is logged with the peer's
    # name.
    routine = isinstance(error, OSError) and "transport" in context
    level = logging.DEBUG if routine else logging.ERROR
    reason = f": {_named(error)}" if isinstance(error, BaseException) else ""
    details = error if logger.isEnabledFor(logging.DEBUG) and not routine else None
    logger.log(level, "%s%s", context.get("message", "error"), reason, exc_info=details)


def _named(error: BaseException) -> str:
    """The error's text, with the class name for programming errors, whose text says too little."""
    if isinstance(error, OSError):
        return describe(error)
    return f"{type(error).__name__}: {error}"
