"""Listening at new addresses when a configuration changes, without a gap where that is possible."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

from mtt.errors import StartError
from mtt.log import logger

_Result = TypeVar("_Result")


class Occupant(NamedTuple):
    """What listens at an old address."""

    name: str  # for the log
    stop: Callable[[], object]  # closes the listening sockets
    listen: Callable[[], Awaitable[object]]  # listens again. Raises StartError.


async def listen_instead(
    bind: Callable[[], Awaitable[_Result]], leaving: Sequence[Occupant]
) -> _Result:
    """The result of `bind`, which listens at new addresses; if need be, `leaving` stops before.

    Raises StartError if that fails; then `leaving` listens as before.
    """
    try:
        return await bind()
    except StartError:
        if not leaving:
            raise
    # An old address may be in the way of a new one: 127.0.0.1:8080 of 0.0.0.0:8080, for example.
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
