"""The client's mux sessions: which one carries the next stream, and how long an idle one lives."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable

from mtt.errors import NetworkError
from mtt.layers.base import Upper
from mtt.layers.holding import Holding
from mtt.layers.smux import SmuxSession
from mtt.layers.smux_stream import SmuxStream
from mtt.outbound.reuse import ReuseGuard, means_dead
from mtt.outbound.upstream import Pool

# A session without streams waits this long for the next one, which then costs no handshake; some
# are kept for longer (`warm`).
IDLE_TIME = 30.0
# However short that is made: who waited for a new session needs a turn of the event loop to use it.
SHORTEST_IDLE = 0.1
# The same when the peer still counts streams that we have closed: Go servers never give up a
# stream whose destination they could not reach, so its place is lost until the session ends.
FINISH_TIME = 2.0
# Go servers end a session that holds more than 16 streams, and they say FIN a moment before they
# strike a stream off: the 17th could come in between.
MOST_STREAMS = 15

# Makes a connection to the server and puts the given session on it.
Connect = Callable[[SmuxSession], Awaitable[None]]


class SessionPool(Pool):
    """Opens streams on as few sessions as the limit of streams per session allows.

    Args:
        connect: dials the server; raises PeerError or NetworkError.
        max_streams: streams per session, those included that the peer has not ended yet.
        warm: how many idle sessions are kept without end.
        idle_time: seconds for the others.
        on_lost: called with the reason when a session is over, None if that was us.
    """

    def __init__(
        self,
        connect: Connect,
        max_streams: int,
        *,
        warm: int = 0,
        idle_time: float = IDLE_TIME,
        on_lost: Callable[[Exception | None], object] | None = None,
    ) -> None:
        self._connect = connect
        self._max_streams = min(max_streams, MOST_STREAMS)
        self._warm = warm
        self._idle_time = idle_time
        self._on_lost = on_lost
        self._sessions: dict[SmuxSession, asyncio.TimerHandle | None] = {}
        self._guard = ReuseGuard()
        self._dialling: dict[asyncio.Task[SmuxSession], int] = {}  # how many streams wait for each

    @property
    def sessions(self) -> Collection[SmuxSession]:
        """The sessions that are up."""
        return self._sessions.keys()

    def start(self) -> None:
        """Nothing is made before it is needed."""

    async def open(self, upper: Upper | None = None) -> SmuxStream:
        """Open a stream for `upper`, or held, on a session there is or on a new one.

        Raises what `connect` raises, and NetworkError if the new session ends at once.
        """
        upper = upper or Holding()
        stream = self.open_at_once(upper)
        while stream is None:
            session = await self._wait_for_session()
            # There first: those that were not fit before may seem to be, but are worse.
            stream = self._open_on((session, *self._sessions), upper)
        return stream

    def open_at_once(self, upper: Upper | None = None) -> SmuxStream | None:
        """Open a stream for `upper`, or held, on a session there is, None if none has room."""
        return self._open_on(self._sessions, upper)

    def _open_on(
        self, sessions: Iterable[SmuxSession], upper: Upper | None
    ) -> SmuxStream | None:
        for session in sessions:
            if self._has_room(session) and session.healthy and self._guard.admits(session):
                self._keep(session)
                return session.open_stream(upper or Holding())
        return None

    async def close(self) -> None:
        """Cut all sessions."""
        for task in list(self._dialling):
            task.cancel()
        if self._dialling:
            await asyncio.wait(self._dialling)
        for session in list(self._sessions):
            session.abort()

    async def _wait_for_session(self) -> SmuxSession:
        room = (task for task, waiting in self._dialling.items() if waiting < self._max_streams)
        task = next(room, None)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._dial())
            self._dialling[task] = 0
            task.add_done_callback(self._dialled)
        self._dialling[task] += 1
        # The dial is not cancelled with one of those who wait for it.
        session = await asyncio.shield(task)
        if session.lost:  # a new one would fare no better
            raise NetworkError("the server closed the new mux session at once")
        return session

    async def _dial(self) -> SmuxSession:
        session = SmuxSession(on_change=self._changed, on_lost=self._lost)
        await self._connect(session)
        if not session.lost:
            self._sessions[session] = None
            self._guard.add(session)
            self._changed(session)  # those who waited for it may have left
        return session

    def _dialled(self, task: asyncio.Task[SmuxSession]) -> None:
        del self._dialling[task]
        if not task.cancelled():
            task.exception()  # those who waited have it; nobody may be left of them

    def _changed(self, session: SmuxSession) -> None:
        """`session` is new, or a stream of it ended."""
        if session.open_streams or session not in self._sessions:
            return
        self._keep(session)
        wait = FINISH_TIME if session.used_slots else max(self._idle_time, SHORTEST_IDLE)
        self._sessions[session] = asyncio.get_running_loop().call_later(
            wait, self._retire, session
        )

    def _retire(self, session: SmuxSession) -> None:
        """`session` has been idle for long enough; close it unless it is one to keep."""
        self._sessions[session] = None
        kept = [
            other
            for other, timer in self._sessions.items()
            if timer is None and not other.used_slots and other is not session
        ]
        if session.used_slots or session.exhausted or len(kept) >= self._warm:
            session.close()

    def _has_room(self, session: SmuxSession) -> bool:
        return session.used_slots < self._max_streams and not session.exhausted

    def _keep(self, session: SmuxSession) -> None:
        timer = self._sessions[session]
        if timer is not None:
            timer.cancel()
            self._sessions[session] = None

    def _lost(self, session: SmuxSession, exc: Exception | None) -> None:
        timer = self._sessions.pop(session, None)
        if timer is not None:
            timer.cancel()
        self._guard.discard(session)
        if means_dead(exc):
            self._guard.doubt_all()
        if self._on_lost is not None:
            self._on_lost(exc)
