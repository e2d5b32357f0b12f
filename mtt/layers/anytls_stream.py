"""One stream of an AnyTLS session, as client and server have it. See `anytls`."""

from __future__ import annotations

import asyncio
from typing import Protocol

from mtt.errors import DestinationError, MttError, NetworkError, again
from mtt.layers.base import Data, StreamProtocol
from mtt.layers.mux_stream import MuxStream
from mtt.layers.mux_stream import Session as MuxSession
from mtt.outcome import Outcome
from mtt.wire.anytls import FIN, PSH, SYNACK, outcome_from_text, synack

# How long a server may take to connect to a destination: Linux sends SYN at 0, 1, 3, 7 and 15 s.
# The servers' own limits are 5 s (the reference), 10 s (ours), 15 s (sing-box, all addresses).
SYNACK_TIME = 20.0
# After so long without an answer the server itself is asked for a sign of life; and one that has
# not said its version by now, although it has what we said, has none: its answer to our settings
# takes one round trip. That is learned once per server.
QUESTION_TIME = 3.0


class Session(MuxSession, Protocol):
    """What a stream needs of its session."""

    version: int

    def control(self, command: int, stream_id: int, payload: bytes = b"") -> None: ...
    def send_data(self, stream_id: int, data: Data) -> None: ...


class AnyTlsStream(MuxStream):
    """What the streams of both sides have in common."""

    name = "AnyTLS stream"

    __slots__ = ()

    _session: Session

    def _send_data(self, data: Data) -> None:
        self._session.send_data(self.id, data)

    def _send_fin(self) -> None:
        self._session.control(FIN, self.id)

    def _send_reset(self) -> None:
        self._session.control(PSH, self.id)

    def receive_fin(self) -> None:
        if not self._session.half_close:
            self._write_eof = True  # it takes nothing any more, and no FIN either
        super().receive_fin()

    def write_eof(self) -> None:
        """Tell the peer that no more data comes from us.

        If it does not know half-close, that is its end as well, and it will not say so.
        """
        super().write_eof()
        if not (self._session.half_close or self._eof):
            self._eof = True
            self._deliver_soon()


class ServerStream(AnyTlsStream):
    """A stream that the peer has opened. Its data begin with the destination."""

    __slots__ = ("_acknowledged",)

    def __init__(self, session: Session, stream_id: int, upper: StreamProtocol) -> None:
        super().__init__(session, stream_id, upper)
        self._acknowledged = False

    def acknowledge(self, outcome: Outcome = Outcome.SUCCEEDED) -> None:
        """Say once whether the destination is reached; `close()` the stream if it is not.

        Clients of version 1 cannot be told.
        """
        session = self._session
        if self._acknowledged or self._write_eof or session.gone(self):
            return
        self._acknowledged = True
        if session.version >= 2:
            session.control(SYNACK, self.id, synack(outcome))


class ClientsSession(Session, Protocol):
    """What a stream of a client needs of its session."""

    @property
    def server_version(self) -> int: ...
    @property
    def may_half_close(self) -> bool: ...
    def question(self) -> None: ...
    def no_version(self, *, certain: bool) -> None: ...
    def has_sent(self, mark: int) -> bool: ...


class ClientStream(AnyTlsStream):
    """A stream that we have opened."""

    __slots__ = (
        "_answered", "_begin_mark", "_question_timer", "_settled", "_verdict", "_waiter",
    )  # fmt: skip

    _session: ClientsSession

    def __init__(self, session: ClientsSession, stream_id: int, upper: StreamProtocol) -> None:
        super().__init__(session, stream_id, upper)
        self._settled = session.server_version == 1  # which does not tell
        self._answered = False  # the last byte is the server's, and came before our upper's end
        self._verdict: Exception | None = None  # why the destination is not reached
        self._waiter: asyncio.Future[None] | None = None
        self._question_timer: asyncio.TimerHandle | None = None
        self._begin_mark = 0  # what the socket had been given with the destination

    def watch(self) -> None:
        """Have the server asked for a sign of life, on which the session depends, if it takes long
        to answer. For who does not wait for `acknowledged`, which does that as well."""
        if not self._settled and self._question_timer is None:
            loop = asyncio.get_running_loop()
            self._question_timer = loop.call_later(QUESTION_TIME, self._question)

    async def acknowledged(self) -> None:
        """Wait until the server has reached the destination, or is known not to tell (version 1).

        Raises DestinationError if the server could not, ends the stream, or does not say so within
        SYNACK_TIME: the stream is closed then. Raises another MttError if the session is over.
        To be called by one task.
        """
        if not self._settled:
            self._waiter = asyncio.get_running_loop().create_future()
            self.watch()
            try:
                async with asyncio.timeout(SYNACK_TIME):
                    await self._waiter
            except TimeoutError:
                self._settle(DestinationError(Outcome.TIMED_OUT))
                self.close()
        if self._verdict is not None:
            raise again(self._verdict)

    def _question(self) -> None:
        self._question_timer = None
        session = self._session
        if session.server_version >= 2:
            session.question()
        elif session.has_sent(self._begin_mark):
            session.no_version(certain=False)
            self._settle(None)
        else:  # not even its kernel has answered, which tells nothing of its version
            self.watch()

    def _settle(self, verdict: Exception | None) -> None:
        if not self._settled:
            self._settled = True
            self._verdict = verdict
            if self._question_timer is not None:
                self._question_timer.cancel()
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)

    @property
    def lingers(self) -> bool:
        """Whether nothing but its end is to be expected of it.

        The protocol above has written its last, the destination has answered since, and all of that
        has been handed up. While an answer is due, or on its way, it is not so: the reply may be
        large, and its reader slow.
        """
        return (
            self._answered and self.upper.sends_no_more and not (self._queue or self._paused)
        )

    # The transport of the protocol above.

    def write(self, data: Data | bytearray) -> None:
        self._answered = False
        super().write(data)
        if not self._begin_mark:
            self._begin_mark = self._mark

    def half_closes(self) -> bool | None:
        session = self._session
        return session.half_close or (None if session.may_half_close else False)

    def abort(self) -> None:
        """Cut the stream. Also as long as the question is open: others than our servers take an
        empty PSH for nothing, and ours must not take what follows for an ordinary end."""
        session = self._session
        self._finish(reset=session.half_close or session.may_half_close)

    # Called by the session.

    def receive_answer(self, text: str) -> None:
        """SYNACK: the destination is reached if there is no text."""
        if not text:
            self._settle(None)
            return
        error = DestinationError(outcome_from_text(text), f"the server says: {text}")
        self._settle(error)
        self._fail(error)

    def receive(self, data: Data) -> None:
        if not self._settled:
            self._settle(None)
            self._session.no_version(certain=True)
        self._answered = not self.upper.sends_no_more
        super().receive(data)

    def give_way(self) -> None:
        """Fail if the session waits for our reader, and our writer is done: see `ClientSession`."""
        if self._queue and self.upper.sends_no_more:
            if self._session.half_close:
                self._send_reset()
            self._fail(NetworkError("the application reads too slowly; another one had to wait"))

    def _fail(self, error: MttError) -> None:
        self._session.finish(self, eof_seen=self._eof, say_fin=not self._write_eof)
        self._drop_queue()
        self.tell_lost(error)

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
