"""Listens at new addresses when a configuration changes, if possible without an interruption."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

from mtt.errors import StartError
from mtt.log import logger

_Result = TypeVar("_Result")


class Occupant(NamedTuple):
    """A listener at an old address."""

    name: str  # for the log
    stop: Callable[[], object]  # closes the listening sockets
    listen: Callable[[], Awaitable[object]]  # listens again. Raises StartError.


async def listen_instead(
    bind: Callable[[], Awaitable[_Result]], leaving: Sequence[Occupant]
) -> _Result:
    """The result of `bind`, which listens at new addresses; stops `leaving` first if necessary.

    If it raises StartError, `leaving` listens as before.
    """
    try:
        return await bind()
    except StartError:
        if not leaving:
            raise
    # An old address may block a new one: 127.0.0.1:8080 blocks 0.0.0.0:8080, for example.
    for each in leaving:
        each.stop()
    try:
        return await bind()
    except StartError:
        await listen_again(leaving)
        raise


async def listen_again(occupants: Iterable[Occupant]) -> None:
    """Undo their `stop()`; failures are logged."""
    for each in occupants:
        try:
            await each.listen()
        except StartError as error:
            logger.error("%s no longer listens: %s", each.name, error)
