"""The event loop: which one, and what becomes of errors that nothing else takes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from mtt.errors import UsageError, describe
from mtt.log import logger


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """What makes the event loop called `name`: auto, asyncio or uvloop.

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
    # The default except on Windows, whose proactor loop would hold on to a receive buffer until
    # data comes. Ours is one buffer for all connections, so it is lent only when data is there.
    return asyncio.SelectorEventLoop


def report_error(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """A loop's exception handler: one line, with a traceback only for those who debug."""
    error = context.get("exception")
    # A transport hands its error to connection_lost() as well, and there it is logged with the
    # peer's name.
    routine = isinstance(error, OSError) and "transport" in context
    level = logging.DEBUG if routine else logging.ERROR
    reason = f": {_named(error)}" if isinstance(error, BaseException) else ""
    details = error if logger.isEnabledFor(logging.DEBUG) and not routine else None
    logger.log(level, "%s%s", context.get("message", "error"), reason, exc_info=details)


def _named(error: BaseException) -> str:
    """What went wrong, with the class for errors of this program, whose text says too little."""
    if isinstance(error, OSError):
        return describe(error)
    return f"{type(error).__name__}: {error}"
