"""An AnyTLS client's sessions: which one carries the next stream, and how long idle ones live."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection

from mtt.errors import DestinationError, MttError, NetworkError, again, describe
from mtt.layers.anytls_client import ClientSession, Learned
from mtt.layers.anytls_stream import ClientStream
from mtt.layers.holding import Holding
from mtt.log import Throttle, logger
from mtt.outbound.reuse import ReuseGuard, means_dead

# As all AnyTLS clients have them: how often idle sessions are looked at, and for how long one is
# idle before it may be closed; how many idle ones are kept nevertheless.
CHECK_INTERVAL = 30.0
IDLE_TIMEOUT = 30.0
MIN_IDLE = 5
# Shorter times, 0 above all, are taken for "not set", as all AnyTLS clients do.
SHORTEST = 5.0
# Between attempts to have sessions ready while the server cannot be reached: seconds, at first
# and, doubled each time, in the end.
RETRY_TIMES = (1.0, 60.0)

# Makes a TLS connection to the server and puts the given session on it.
Connect = Callable[[ClientSession], Awaitable[None]]


class AnyTlsPool:
    """Opens streams, each on a session of its own for as long as it is of use.

    A session whose stream is over, or only waits for its end, carries the next one, the newest
    session first: so the oldest ones get old, and go.

    Args:
        connect: dials the server; raises PeerError or NetworkError.
        hashed: the `wire.anytls.password_hash`.
        min_idle: how many idle sessions are kept without end.
        warm: how many sessions `start` makes, kept as well. They say their settings at once, and
            are used after the server has given a sign of life.
        check_interval: seconds between looks at the idle ones. SHORTEST or less: CHECK_INTERVAL.
        idle_timeout: seconds after which one is not needed. SHORTEST or less: IDLE_TIMEOUT.
        reuse: whether a session carries more than one stream.
        on_lost: called with the reason when a session is over, None if that was us.
    """

    def __init__(
        self,
        connect: Connect,
        hashed: bytes,
        *,
        min_idle: int = MIN_IDLE,
        warm: int = 0,
        check_interval: float = CHECK_INTERVAL,
        idle_timeout: float = IDLE_TIMEOUT,
        reuse: bool = True,
        on_lost: Callable[[Exception | None], object] | None = None,
    ) -> None:
        self._connect = connect
        self._hashed = hashed
        self._warm = warm if reuse else 0
        self._min_idle = max(min_idle, warm) if reuse else 0
        self._check_interval = check_interval if check_interval > SHORTEST else CHECK_INTERVAL
        self._idle_timeout = idle_timeout if idle_timeout > SHORTEST else IDLE_TIMEOUT
        self._reuse = reuse
        self._on_lost = on_lost
        self._server = Learned(on_refused=Throttle().warning)
        self._sessions: dict[ClientSession, None] = {}  # the oldest first
        self._guard = ReuseGuard()
        self._unended: set[ClientSession] = set()  # see _clean
        self._check_timer: asyncio.TimerHandle | None = None
        self._warming: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def sessions(self) -> Collection[ClientSession]:
        """The sessions that are up."""
        return self._sessions.keys()

    @property
    def idle(self) -> int:
        """How many of them carry no stream."""
        return sum(session.idle_since is not None for session in self._sessions)

    def start(self) -> None:
        """Begin to make the `warm` sessions."""
        if self._warm and self._warming is None:
            self._warming = asyncio.get_running_loop().create_task(self._warm_up())

    async def open(self, destination: bytes, *, wait: bool = True) -> ClientStream:
        """Open a stream. It does not read, and its protocol is a `Holding`.

        Args:
            destination: where to, as `wire.addresses.encode` has it.
            wait: until the server has reached the destination, as far as it tells.

        Raises what `connect` raises, and what `ClientStream.acknowledged` does; but a session that
        was idle and is found dead meanwhile is replaced by a new one.
        """
        session = self._newest_idle()
        while not self._closed:
            new = session is None
            if session is None:
                session = await self._dial()
            stream = _open_on(session, destination)
            if not wait:
                stream.watch()
                return stream
            try:
                await stream.acknowledged()
            except DestinationError:
                stream.close()
                raise
            except MttError:
                if new:  # another one would fare no better
                    raise
                session = None  # that took seconds; nobody waits for those for each idle one
            except BaseException:
                stream.abort()
                raise
            else:
                return stream
        raise NetworkError("the AnyTLS client is being closed")

    def open_at_once(self, destination: bytes) -> ClientStream | None:
        """The same with `wait=False`, on an idle session; None if there is none."""
        session = None if self._closed else self._newest_idle()
        if session is None:
            return None
        stream = _open_on(session, destination)
        stream.watch()
        return stream

    async def close(self) -> None:
        """Cut all sessions."""
        self._closed = True
        if self._warming is not None:
            self._warming.cancel()
            await asyncio.wait([self._warming])
        if self._check_timer is not None:
            self._check_timer.cancel()
        for session in list(self._sessions):
            session.abort()

    def _newest_idle(self) -> ClientSession | None:
        for session in reversed(self._sessions) if self._reuse else ():
            if session.has_room and session.healthy and self._guard.admits(session):
                return session
        return None

    async def _dial(self) -> ClientSession:
        session = ClientSession(
            self._hashed,
            self._server,
            half_close=True,
            on_change=self._changed,
            on_lost=self._lost,
        )
        await self._connect(session)
        if self._closed:
            session.abort()
        if session.lost:
            raise again(session.error or NetworkError("the AnyTLS client is being closed"))
        self._sessions[session] = None
        self._guard.add(session)
        if self._check_timer is None:
            self._schedule_check()
        return session

    async def _warm_up(self) -> None:
        delay, most = RETRY_TIMES
        log = logger.warning
        for _ in range(self._warm):
            while len(self._sessions) < self._warm:
                try:
                    session = await self._dial()
                    session.greet()
                    self._guard.doubt(session)
                    break
                except MttError as error:
                    log("no session with the server can be made ready: %s", describe(error))
                log = logger.debug
                await asyncio.sleep(delay)
                delay = min(2 * delay, most)

    # Ends.

    def _changed(self, session: ClientSession) -> None:
        """A stream of `session` ended."""
        if not self._reuse and session.idle_since is not None:
            session.close()

    def _lost(self, session: ClientSession, exc: Exception | None) -> None:
        self._sessions.pop(session, None)
        self._unended.discard(session)
        self._guard.discard(session)
        if means_dead(exc):
            self._guard.doubt_all()
        if self._on_lost is not None:
            self._on_lost(exc)

    def _schedule_check(self) -> None:
        self._check_timer = asyncio.get_running_loop().call_later(self._check_interval, self._clean)

    def _clean(self) -> None:
        """Close what has been idle for too long, the oldest ones, down to `min_idle`."""
        now = asyncio.get_running_loop().time()
        kept = 0
        for session in reversed(list(self._sessions)):
            since = session.idle_since
            if since is None:
                self._clean_unended(session)
            elif now - since < self._idle_timeout:
                kept += 1
            elif kept < self._min_idle:
                session.idle_since = now
                kept += 1
            else:
                session.close()
        self._check_timer = None
        if self._sessions:
            self._schedule_check()

    def _clean_unended(self, session: ClientSession) -> None:
        """Close a session whose stream we have closed, and the server has not by the next look."""
        if session.open_streams:
            self._unended.discard(session)
        elif session in self._unended:
            session.close()
        else:
            self._unended.add(session)


def _open_on(session: ClientSession, destination: bytes) -> ClientStream:
    stream = session.open_stream(Holding(), destination)
    stream.pause_reading()
    return stream
