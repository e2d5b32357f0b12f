"""Pool of a client's multiplexed sessions: choice of a session for a stream, and idle timeouts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable

from mtt.errors import NetworkError
from mtt.layers.mux_tunnel import TunnelSession, TunnelStream
from mtt.layers.parked import Parked
from mtt.outbound.reuse import ReuseGuard, is_abnormal_end
from mtt.outbound.upstream import Upstream

# Idle timeout of a session, seconds: a stream within this time needs no handshake. Some sessions
# are kept longer (`warm`).
IDLE_TIME = 30.0
# Shortest idle timeout, seconds: a waiter needs a turn of the event loop to use a new session.
MIN_IDLE_TIME = 0.1
# Idle timeout while the peer still counts closed streams of the client, seconds. Go servers never
# end a stream whose destination was unreachable, so its slot is lost until the session ends.
FINISH_TIME = 2.0
# Go servers end a session of smux with more than 16 streams. They send FIN shortly before they
# remove a stream, so a 17th could arrive in between. Servers of Mux.Cool have no limit.
MAX_STREAMS = 15

# Makes a connection to the server and attaches the session to it.
Connect = Callable[[TunnelSession], Awaitable[None]]


class SessionPool(Upstream):
    """Opens streams on as few sessions as the stream limit allows.

    Args:
        connect: dials the server; raises PeerError or NetworkError.
        session: makes a session: its class.
        max_streams: streams per session, including those that the peer has not ended yet.
        warm: idle sessions that are kept beyond the idle timeout.
        idle_time: idle timeout of the other sessions, seconds.
        on_lost: called with the error when a session ends; None if this side closed it.
    """

    def __init__(
        self,
        connect: Connect,
        session: type[TunnelSession],
        max_streams: int,
        *,
        warm: int = 0,
        idle_time: float = IDLE_TIME,
        on_lost: Callable[[Exception | None], object] = lambda _error: None,
    ) -> None:
        self._connect = connect
        self._session = session
        self._max_streams = min(max_streams, MAX_STREAMS)
        self._warm = warm
        self._idle_time = idle_time
        self._on_lost = on_lost
        self._sessions: dict[TunnelSession, asyncio.TimerHandle | None] = {}
        self._guard = ReuseGuard()
        self._dialling: dict[asyncio.Task[TunnelSession], int] = {}  # number of waiters

    @property
    def sessions(self) -> Collection[TunnelSession]:
        return self._sessions.keys()

    async def open(self) -> TunnelStream:
        """Open a stream on an existing or a new session.

        Raises like `connect`, and NetworkError if the new session ends at once.
        """
        stream = self.open_at_once()
        while stream is None:
            session = await self._wait_for_session()
            # The new session first: the others were unsuitable a moment ago.
            stream = self._open_on((session, *self._sessions))
        return stream

    def open_at_once(self) -> TunnelStream | None:
        return self._open_on(self._sessions)

    def _open_on(self, sessions: Iterable[TunnelSession]) -> TunnelStream | None:
        for session in sessions:
            has_room = session.used_slots < self._max_streams and not session.exhausted
            if has_room and session.healthy and self._guard.admits(session):
                self._cancel_timer(session)
                return session.open_stream(Parked())
        return None

    async def close(self) -> None:
        for task in list(self._dialling):
            task.cancel()
        if self._dialling:
            await asyncio.wait(self._dialling)
        for session in list(self._sessions):
            session.abort()

    async def _wait_for_session(self) -> TunnelSession:
        room = (task for task, waiting in self._dialling.items() if waiting < self._max_streams)
        task = next(room, None)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._dial())
            self._dialling[task] = 0
            task.add_done_callback(self._dialled)
        self._dialling[task] += 1
        # Cancelling one waiter must not cancel the dial.
        session = await asyncio.shield(task)
        if session.lost:  # another new session would fail too
            raise NetworkError("the server closed the new mux session at once")
        return session

    async def _dial(self) -> TunnelSession:
        session = self._session(on_change=self._changed, on_lost=self._lost)
        await self._connect(session)
        if not session.lost:
            self._sessions[session] = None
            self._guard.add(session)
            self._changed(session)  # all waiters may be cancelled by now
        return session

    def _dialled(self, task: asyncio.Task[TunnelSession]) -> None:
        del self._dialling[task]
        if not task.cancelled():
            task.exception()  # waiters have it; mark it retrieved in case there are none

    def _changed(self, session: TunnelSession) -> None:
        """Called when `session` is new or one of its streams has ended."""
        if session.open_streams or session not in self._sessions:
            return
        self._cancel_timer(session)
        wait = FINISH_TIME if session.used_slots else max(self._idle_time, MIN_IDLE_TIME)
        self._sessions[session] = asyncio.get_running_loop().call_later(
            wait, self._retire, session
        )

    def _retire(self, session: TunnelSession) -> None:
        """Close the idle `session` unless it is kept warm."""
        self._sessions[session] = None
        kept = [
            other
            for other, timer in self._sessions.items()
            if timer is None and not other.used_slots and other is not session
        ]
        if session.used_slots or session.exhausted or len(kept) >= self._warm:
            session.close()

    def _cancel_timer(self, session: TunnelSession) -> None:
        timer = self._sessions[session]
        if timer is not None:
            timer.cancel()
            self._sessions[session] = None

    def _lost(self, session: TunnelSession, exc: Exception | None) -> None:
        timer = self._sessions.pop(session, None)
        if timer is not None:
            timer.cancel()
        self._guard.discard(session)
        if is_abnormal_end(exc):
            self._guard.verify_all()
        self._on_lost(exc)
