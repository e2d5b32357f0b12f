"""One stream of an AnyTLS session, as client and server have it. See `anytls`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from mtt.errors import MttError, NetworkError, again
from mtt.layers.anytls_interim import Interim
from mtt.layers.base import Data, Upper, without_traceback
from mtt.layers.mux_stream import MuxStream
from mtt.layers.mux_stream import Session as MuxSession
from mtt.wire.anytls import FIN, PSH, SYNACK
from mtt.wire.socks import DestinationError, Outcome, outcome_from_text

# How long a server may take to connect to a destination: Linux sends SYN at 0, 1, 3, 7 and 15 s.
# The servers' own limits are 5 s (the reference), 10 s (ours), 15 s (sing-box, all addresses).
SYNACK_TIME = 20.0
# After so long without an answer the server itself is asked for a sign of life; and one that has
# not said its version by now, although it has what we said, has none: its answer to our settings
# takes one round trip. That is learned once per server.
QUESTION_TIME = 3.0
# What is written before the server has answered is kept to be said again on another session: a
# ClientHello, a request. With more than this, bytes, the stream stays on its session.
KEPT_LIMIT = 64 * 1024


class Session(MuxSession, Protocol):
    """What a stream needs of its session."""

    version: int

    def control(self, command: int, stream_id: int, payload: bytes = b"") -> None: ...
    def send_data(self, stream_id: int, data: Data) -> None: ...


class AnyTlsStream(MuxStream):
    """What the streams of both sides have in common."""

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

    def __init__(self, session: Session, stream_id: int, upper: Upper) -> None:
        super().__init__(session, stream_id, upper)
        self._acknowledged = False

    def acknowledge(self, outcome: Outcome = Outcome.SUCCEEDED) -> None:
        """Say once whether the destination is reached; `close()` the stream if it is not.

        Clients of version 1 cannot be told. The others get the fixed text of the outcome: what the
        system or the resolver says is nobody's business outside.
        """
        session = self._session
        if self._acknowledged or self._write_eof or session.gone(self):
            return
        self._acknowledged = True
        if session.version >= 2:
            text = "" if outcome is Outcome.SUCCEEDED else outcome.text
            session.control(SYNACK, self.id, text.encode())


class ClientsSession(Session, Protocol):
    """What a stream of a client needs of its session."""

    @property
    def server_version(self) -> int: ...
    @property
    def may_half_close(self) -> bool: ...
    def question(self) -> None: ...
    def no_version(self, *, certain: bool) -> None: ...
    def has_sent(self, mark: int) -> bool: ...
    def give_up_unheard(self, mark: int) -> bool: ...


# Begins to make another session that takes a stream over.
Replace = Callable[["ClientStream"], asyncio.Task[None]]


class ClientStream(AnyTlsStream):
    """A stream that we have opened.

    A session that carried streams before may have died unnoticed. If it turns out so before the
    server has answered anything, the stream begins again on a new session, with what was written
    so far; the protocol above notices no more than a pause. A server of version 2 answers before it
    passes on data, so the destination has got nothing by then; with version 1 that cannot be known,
    and what HTTP clients do with connections that are used again is done here.

    Args:
        session: which carries it.
        stream_id: its number there.
        upper: the protocol above.
        replace: called at most once, if the session is over before the server has answered. None
            for a new session, which another one would not do better.
    """

    __slots__ = (
        "_answered", "_begin_mark", "_destination", "_kept", "_question_timer", "_replace",
        "_settled", "_verdict", "_waiter",
    )  # fmt: skip

    _session: ClientsSession

    def __init__(
        self,
        session: ClientsSession,
        stream_id: int,
        upper: Upper,
        replace: Replace | None = None,
    ) -> None:
        super().__init__(session, stream_id, upper)
        self._replace = replace  # None also when it is too late
        self._destination = b""  # the first write
        self._kept = bytearray()  # the others, as long as they may have to be said again
        self._settled = session.server_version == 1  # which does not tell
        self._answered = False  # the last byte is the server's, and came before our upper's end
        self._verdict: Exception | None = None  # why the destination is not reached
        self._waiter: asyncio.Future[None] | None = None
        self._question_timer: asyncio.TimerHandle | None = None
        self._begin_mark = 0  # what the socket had been given with the destination

    def watch(self) -> None:
        """Have the server asked for a sign of life, on which the session depends, if it takes long
        to answer. For who does not wait for `acknowledged`, which does that as well."""
        if (self._replace or not self._settled) and self._question_timer is None:
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
        if self._replace is not None and session.give_up_unheard(self._begin_mark):
            return  # to another one
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
            if self._replace is None:
                self._stop_timer()
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)

    def _stop_timer(self) -> None:
        if self._question_timer is not None:
            self._question_timer.cancel()
            self._question_timer = None

    # From one session to another.

    def _keep(self, data: Data | bytearray) -> None:
        if not self._destination:
            self._destination = bytes(data)
        elif len(self._kept) + len(data) > KEPT_LIMIT and self._replace is not None:
            self._stay()
        else:
            self._kept += data

    def _stay(self) -> None:
        """The session has proved alive, or it is too late to begin again."""
        self._replace = None
        self._kept = bytearray()
        if self._settled:
            self._stop_timer()

    def _leave(self, replace: Replace) -> None:
        """The session is over; another one is to be made."""
        self._replace = None
        self._stop_timer()
        old = self._session
        self._session = Interim(old.lower, old.server_version, replace(self))
        self._mark = self._begin_mark = 0
        self.upper.pause_writing()

    def move(self, session: ClientsSession, stream_id: int) -> None:
        """Be the stream of another session, which has not been told yet."""
        self._session = session
        self.id = stream_id

    def say_again(self) -> None:
        """Begin again, on the session to which it was moved."""
        kept, self._kept = self._kept, bytearray()
        self._send_data(self._destination)
        self._mark = self._begin_mark = self._session.handed_over
        if kept:
            self._send_data(bytes(kept))
            self._mark = self._session.handed_over
        if self._write_eof:
            self._send_fin()
        if not self._blocked():
            self.upper.resume_writing()
        self.watch()

    @property
    def is_moving(self) -> bool:
        """Whether it has lost its session, and has no other one yet."""
        return isinstance(self._session, Interim) and not self.is_closing()

    def fail(self, error: MttError) -> None:
        """There is no other session."""
        if self.is_moving:
            without_traceback(error)  # its frames know the stream
            self._settle(error)
            self._fail(error)

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
        if self._replace is not None or self.is_moving:
            self._keep(data)
        super().write(data)
        if not self._begin_mark:
            self._begin_mark = self._mark

    def unsent(self) -> int:
        """An open question counts as a byte: an end that is told before the server can have said
        what it knows ends both directions, which it might not need to."""
        return super().unsent() + self._session.may_half_close

    def abort(self) -> None:
        """Cut the stream. Also as long as the question is open: others than our servers take an
        empty PSH for nothing, and ours must not take what follows for an ordinary end."""
        session = self._session
        self._finish(reset=session.half_close or session.may_half_close)

    # Called by the session.

    def receive_answer(self, text: str) -> None:
        """SYNACK: the destination is reached if there is no text."""
        self._stay()
        if not text:
            self._settle(None)
            return
        error = DestinationError(outcome_from_text(text), f"the server says: {text}")
        self._settle(error)
        self._fail(error)

    def receive(self, data: Data) -> None:
        if self._replace is not None:
            self._stay()
        if not self._session.version:
            self._session.no_version(certain=True)
        if not self._settled:
            self._settle(None)
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
        self._tell_lost(error)

    def receive_fin(self) -> None:
        self._stay()
        self._settle(DestinationError(Outcome.GENERAL_FAILURE, "the server ended the stream"))
        super().receive_fin()

    def receive_reset(self) -> None:
        self._stay()
        self._settle(DestinationError(Outcome.GENERAL_FAILURE, "the server reset the stream"))
        super().receive_reset()

    def session_ended(self, exc: Exception | None) -> None:
        if exc is not None and self._replace is not None and not self._eof:
            self._leave(self._replace)
            return
        self._stay()
        self._settle(exc or NetworkError("the AnyTLS session was closed"))
        super().session_ended(exc)

    def _finish(self, *, reset: bool) -> None:
        self._stay()
        self._settle(NetworkError("the stream was closed"))
        super()._finish(reset=reset)
