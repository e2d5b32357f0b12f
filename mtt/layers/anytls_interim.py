"""What stands in for the session of a client's AnyTLS stream that is moved to another one."""

from __future__ import annotations

import asyncio
from typing import Any

from mtt.layers.base import Data


class Interim:
    """Takes nothing and sends nothing: the stream itself keeps what is written meanwhile.

    Args:
        lower: the connection of the session that is over, for what is asked about the peer.
        server_version: what that session knew.
        moving: makes the next session; cancelled when the stream is closed before.
    """

    __slots__ = ("_closed", "_moving", "lower", "server_version", "version", "writer")

    write_paused = True
    half_close = False
    may_half_close = True  # not known yet: an end has to wait until it is
    handed_over = 0

    def __init__(
        self, lower: asyncio.Transport, server_version: int, moving: asyncio.Task[None]
    ) -> None:
        self.lower = lower
        self.server_version = server_version
        self.version = 0
        self.writer = 0
        self._moving: asyncio.Task[None] | None = moving
        self._closed = False

    def gone(self, stream: Any) -> bool:
        return self._closed

    def finish(self, stream: Any, *, eof_seen: bool, say_fin: bool) -> None:
        self._closed = True
        if self._moving is not None:
            self._moving.cancel()
            self._moving = None

    def queued(self, size: int) -> None:
        pass

    def engage(self, count: int) -> None:
        pass

    def control(self, command: int, stream_id: int, payload: bytes = b"") -> None:
        pass

    def send_data(self, stream_id: int, data: Data) -> None:
        pass

    def question(self) -> None:
        pass

    def no_version(self, *, certain: bool) -> None:
        pass

    def has_sent(self, mark: int) -> bool:
        return False

    def give_up_unheard(self, mark: int) -> bool:
        return False
