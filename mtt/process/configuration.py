"""A configuration file that a running service follows.

    change of the file, or SIGHUP -> read -> check -> apply -> one line in the log

A file with an error changes nothing. `apply` does all of a change, or raises before it does any.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from mtt.errors import MttError, describe
from mtt.followed import FollowedFiles
from mtt.log import logger

Options = TypeVar("Options")


@dataclass(slots=True)
class Changes:
    """What a new configuration changed."""

    done: list[str] = field(default_factory=list)  # in words, for the log
    refused: list[str] = field(default_factory=list)  # keys whose changes need a restart

    def add(self, what: str, before: object, now: object) -> bool:
        """Note `what` as changed if the values differ; returns whether they do."""
        if before != now:
            self.done.append(what)
        return before != now

    def refuse(self, key: str, before: object, now: object) -> bool:
        """Note that `key` needs a restart if the values differ; returns whether they do."""
        if before != now:
            self.refused.append(key)
        return before != now

    def count(self, number: int, one: str, several: str, how: str) -> None:
        """Note "2 proxies added", unless `number` is 0."""
        if number:
            self.done.append(f"{number} {one if number == 1 else several} {how}")


class Configuration(FollowedFiles, Generic[Options]):
    """Follows the configuration file `path`.

    Args:
        load: reads and checks it, in a thread. Raises MttError.
        apply: puts the options into effect. Raises MttError if that is impossible.
    """

    def __init__(
        self,
        path: str,
        load: Callable[[], Options],
        apply: Callable[[Options], Awaitable[Changes]],
    ) -> None:
        super().__init__((path,))
        self._load = load
        self._apply = apply

    async def _read_again(self) -> None:
        try:
            changes = await self._apply(await asyncio.to_thread(self._load))
        except MttError as error:
            logger.error("the old configuration stays in use: %s", error)
        except Exception as error:  # the next change must be noticed all the same
            logger.error("configuration not reloaded: internal error: %s", describe(error))
            logger.debug("where it happened:", exc_info=True)
        else:
            if changes.done or not changes.refused:
                what = ", ".join(changes.done) or "the configuration has not changed"
                logger.info("reloaded: %s", what)
            if changes.refused:
                keys = ", ".join(changes.refused)
                logger.warning("changed, but not before a restart: %s", keys)
