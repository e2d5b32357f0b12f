"""One stream of an AnyTLS session: the common part of both sides, and the client's. See `anytls`.

The server's is in `anytls_server`.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from mtt.errors import DestinationError, MttError, NetworkError, again
from mtt.layers.base import Data, StreamProtocol
from mtt.layers.mux_stream import MuxStream, Session
from mtt.outcome import Outcome
from mtt.wire.anytls import VERSION, outcome_from_text

# Seconds for a server to connect to a destination: Linux sends SYN at 0, 1, 3, 7 and 15 s. The
# servers' own limits are 5 s (the reference), 10 s (ours), 15 s (sing-box, all addresses).
SYNACK_TIME = 20.0
# Seconds without an answer until the client requests a heartbeat. A server that has acknowledged
# the client's settings, but not announced a version by now, has version 1: its answer takes one
# round trip. The client remembers that for the server's other sessions.
HEARTBEAT_DELAY = 3.0


class AnyTlsStream(MuxStream):
    """The common part of both sides."""

    name = "AnyTLS stream"

    __slots__ = ()

    def receive_fin(self) -> None:
        if not self._session.half_close:
            self._write_eof = True  # the peer takes no more data, and no FIN
        super().receive_fin()

    def write_eof(self) -> None:
        """End our direction; without half-close also the peer's, which then sends no FIN."""
        super().write_eof()
        if not (self._session.half_close or self._eof):
            self._eof = True
            self._deliver_soon()


class ClientSideSession(Session, Protocol):
    """What a client's stream needs of its session."""

    @property
    def server_version(self) -> int: ...
    @property
    def may_half_close(self) -> bool: ...
    def request_heartbeat(self) -> None: ...
    def assume_version_1(self, *, certain: bool) -> None: ...


class ClientStream(AnyTlsStream):
    """A stream that this client has opened."""

    __slots__ = (
        "_begin_mark", "_failure", "_heartbeat_timer", "_reply_ended", "_settled", "_waiter",
    )  # fmt: skip

    _session: ClientSideSession

    def __init__(self, session: ClientSideSession, stream_id: int, upper: StreamProtocol) -> None:
        super().__init__(session, stream_id, upper)
        self._settled = session.server_version == 1  # which sends no SYNACK
        self._failure: Exception | None = None  # why the destination is not reached
        self._waiter: asyncio.Future[None] | None = None
        self._heartbeat_timer: asyncio.TimerHandle | None = None
        self._begin_mark = 0  # the socket's count after the destination was written
        # The server has sent the last byte, and before the protocol above had ended its direction.
        self._reply_ended = False

    def expect_answer(self) -> None:
        """Request a heartbeat, on which the session depends, if the server does not answer soon.

        `acknowledged` includes this.
        """
        if not self._settled and self._heartbeat_timer is None:
            loop = asyncio.get_running_loop()
            self._heartbeat_timer = loop.call_later(HEARTBEAT_DELAY, self._answer_overdue)

    async def acknowledged(self) -> None:
        """Wait until the server has reached the destination, or is known to have version 1.

        Raises DestinationError if the server could not reach it, ended the stream, or did not
        answer within SYNACK_TIME, which closes the stream. Raises another MttError if the session
        is over. For one task only.
        """
        if not self._settled:
            self._waiter = asyncio.get_running_loop().create_future()
            self.expect_answer()
            try:
                async with asyncio.timeout(SYNACK_TIME):
                    await self._waiter
            except TimeoutError:
                self._settle(DestinationError(Outcome.TIMED_OUT))
                self.close()
        if self._failure is not None:
            raise again(self._failure)

    def _answer_overdue(self) -> None:
        self._heartbeat_timer = None
        session = self._session
        if session.server_version >= VERSION:
            session.request_heartbeat()
        elif session.acknowledged >= self._begin_mark:
            session.assume_version_1(certain=False)
            self._settle(None)
        else:  # not even its kernel has answered, so its version is still unknown
            self.expect_answer()

    def _settle(self, failure: Exception | None) -> None:
        if not self._settled:
            self._settled = True
            self._failure = failure
            if self._heartbeat_timer is not None:
                self._heartbeat_timer.cancel()
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)

    @property
    def is_lingering(self) -> bool:
        """Whether only the stream's end is missing.

        The protocol above has ended its direction after the destination had answered its last
        byte, and has been given all of that. While an answer is due or arriving, this is false: it
        may be large, and its reader slow.
        """
        if self._queue or self._paused:
            return False
        return self._reply_ended and self.upper.has_finished_writing

    # The transport of the protocol above.

    def write(self, data: Data | bytearray) -> None:
        self._reply_ended = False
        super().write(data)
        if not self._begin_mark:
            self._begin_mark = self._write_mark

    def half_closes(self) -> bool | None:
        session = self._session
        return session.half_close or (None if session.may_half_close else False)

    # Called by the session.

    def receive_answer(self, text: str) -> None:
        """SYNACK: an empty text means that the destination is reached."""
        if not text:
            self._settle(None)
            return
        error = DestinationError(outcome_from_text(text), f"the server says: {text}")
        self._settle(error)
        self._fail(error)

    def receive(self, data: Data) -> None:
        if not self._settled:
            self._settle(None)
            self._session.assume_version_1(certain=True)
        self._reply_ended = not self.upper.has_finished_writing
        super().receive(data)

    def fail_if_stalling(self) -> None:
        """Fail if the writer has finished and a slow reader stalls the session."""
        if self._queue and self.upper.has_finished_writing:
            if self._session.half_close:
                self._session.send_reset(self.id)
            self._fail(NetworkError("the application reads too slowly and blocked another one"))

    def _fail(self, error: MttError) -> None:
        self._session.finish(self, eof_seen=self._eof, say_fin=not self._write_eof)
        self._drop_queue()
        self.report_lost(error)

    def receive_fin(self) -> None:
        self._settle(DestinationError(Outcome.GENERAL_FAILURE, "the server ended the stream"))
        super().receive_fin()

    def receive_reset(self) -> None:
        self._settle(DestinationError(Outcome.GENERAL_FAILURE, "the server reset the stream"))
        super().receive_reset()

    def session_ended(self, exc: Exception | None) -> None:
        self._settle(exc or NetworkError("the AnyTLS session was closed"))
        super().session_ended(exc)

    def _finish(self, *, reset: bool) -> None:
        self._settle(NetworkError("the stream was closed"))
        super()._finish(reset=reset)
