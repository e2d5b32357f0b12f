"""Reloads the configuration file of a running service.

    change of the file, or SIGHUP -> read -> check -> apply -> one line in the log

A file with an error changes nothing. `apply` is atomic: if it raises, nothing has changed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from mtt import log
from mtt.errors import MttError, describe
from mtt.files import reading_again
from mtt.followed import FollowedFiles
from mtt.log import logger
from mtt.options.flags import Values
from mtt.options.process import ProcessOptions, process_options

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
        read: reads it; returns the values of all options. Raises UsageError.
        values: the values in use.
        check: makes the options from values. Like `read`, it runs in a thread. Raises MttError.
        apply: puts the options into effect. Raises MttError if that is impossible.
    """

    def __init__(
        self,
        path: str,
        read: Callable[[], Values],
        values: Values,
        check: Callable[[Values], Options],
        apply: Callable[[Options], Awaitable[Changes]],
    ) -> None:
        super().__init__((path,))
        self._read = read
        self._check = check
        self._apply = apply
        self._process = process_options(values)

    def _load(self) -> tuple[Options, ProcessOptions]:
        with reading_again():  # the file, and those that it names
            values = self._read()
            return self._check(values), process_options(values)

    async def _read_again(self) -> None:
        with _errors_logged():
            options, process = await asyncio.to_thread(self._load)
            self._finish(await self._apply(options), process)

    def read_now(self, apply: Callable[[Options], Changes]) -> None:
        """Read the file, and apply it with another `apply`, in a process without a loop."""
        with _errors_logged():
            options, process = self._load()
            self._finish(apply(options), process)

    def _finish(self, changes: Changes, process: ProcessOptions) -> None:
        if changes.add("log level", self._process.log_level, process.log_level):
            log.set_level(process.log_level)
        changes.refuse("log format", self._process.log_format, process.log_format)
        self._process = process._replace(log_format=self._process.log_format)
        if changes.done or not changes.refused:
            what = ", ".join(changes.done) or "the configuration has not changed"
            logger.info("reloaded: %s", what)
        if changes.refused:
            keys = ", ".join(changes.refused)
            logger.warning("changed, but not before a restart: %s", keys)


@contextlib.contextmanager
def _errors_logged() -> Iterator[None]:
    try:
        yield
    except MttError as error:
        logger.error("the old configuration stays in use: %s", error)
    except Exception as error:  # the next change must still be noticed
        logger.error("configuration not reloaded: internal error: %s", describe(error))
        logger.debug("where it happened:", exc_info=True)
