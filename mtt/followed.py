"""Files that are read again when they change, so that a change needs no restart."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterable

# Seconds between checks of the files, which must be unchanged for as long before they are read: a
# certificate and its key are two files, and no tool replaces both atomically. Renewals are due
# weeks before the expiry, so the interval matters only to an operator who is watching.
CHECK_INTERVAL = 5.0

# The state of the files from stat(); ctime covers changed permissions.
_State = tuple[tuple[int, ...] | None, ...]


class FollowedFiles:
    """Base of what is read from `files`, and read again when they change.

    Initialise it before they are read, so that changes meanwhile are noticed.
    """

    def __init__(self, files: Iterable[str]) -> None:
        self.files = tuple(files)
        self._tried = self._seen = self._state()
        self._asked = asyncio.Event()
        self._follower: asyncio.Task[None] | None = None

    def follow(self) -> None:
        """Start watching the files, if there are any."""
        if self.files:
            self._follower = asyncio.get_running_loop().create_task(self._follow())

    def reload(self) -> None:
        """Reload the files now, changed or not."""
        self._asked.set()

    def has_changed(self) -> bool:
        """Whether the files have changed since the last call, or since they were reloaded.

        For processes that do not follow them.
        """
        before, self._tried = self._tried, self._state()
        return before != self._tried

    def is_due(self) -> bool:
        """Whether the files have changed, and then not for as long as since the last call.

        For processes that do not follow them, but call this every CHECK_INTERVAL.
        """
        before, self._seen = self._seen, self._state()
        if self._seen == self._tried or self._seen != before:
            return False
        self._tried = self._seen
        return True

    async def close(self) -> None:
        """Stop watching the files."""
        if self._follower is not None:
            self._follower.cancel()
            await asyncio.wait([self._follower])

    async def _follow(self) -> None:
        # In threads, because a disk or a network file system may be slow.
        seen = self._tried
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CHECK_INTERVAL):
                    await self._asked.wait()
            asked = self._asked.is_set()
            self._asked.clear()
            state = await asyncio.to_thread(self._state)
            if asked or (state != self._tried and state == seen):
                self._tried = state
                await self._read_again()
            seen = state

    async def _read_again(self) -> None:
        """Called after a change. Handles its own errors."""
        raise NotImplementedError

    def _state(self) -> _State:
        return tuple(_file_state(path) for path in self.files)


def _file_state(path: str) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # ValueError: a NUL in the path, which loading will report
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
