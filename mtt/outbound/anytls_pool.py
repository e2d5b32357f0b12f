"""Pool of an AnyTLS client's sessions: choice of a session for a stream, and idle timeouts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection

from mtt.errors import DestinationError, MttError, NetworkError, again, describe
from mtt.layers.anytls_client import ClientSession, ServerState
from mtt.layers.anytls_stream import ClientStream
from mtt.layers.parked import Parked
from mtt.log import Throttle, logger
from mtt.outbound.reuse import ReuseGuard, is_abnormal_end
from mtt.outbound.upstream import Upstream

# Defaults of all AnyTLS clients: the interval between checks of idle sessions and the idle timeout,
# in seconds, and how many idle sessions are kept regardless.
CHECK_INTERVAL = 30.0
IDLE_TIMEOUT = 30.0
MIN_IDLE = 5
# Times up to this long, in seconds, mean "not set", as in all AnyTLS clients; above all 0.
MIN_TIME = 5.0
# Seconds between attempts to make sessions in advance while the server is unreachable: the first
# delay and the longest. Each attempt doubles it.
RETRY_TIMES = (1.0, 60.0)

# A tunnel server ignores the destination. This is tunnel.invalid, port 1: a name that never exists
# (RFC 6761), so that an AnyTLS proxy server reports an error.
TUNNEL_DESTINATION = b"\3\x0etunnel.invalid\0\1"

# Makes a TLS connection to the server and attaches the session to it.
Connect = Callable[[ClientSession], Awaitable[None]]


class AnyTlsPool(Upstream):
    """Opens streams, at most one active stream per session.

    A session is reused once its stream has ended, or only waits for the server's end of stream.
    The newest session goes first, so that the oldest ones reach the idle timeout.

    Args:
        connect: dials the server; raises PeerError or NetworkError.
        hashed: the `wire.anytls.password_hash`.
        min_idle: idle sessions that are kept beyond the idle timeout.
        warm: sessions that `start` makes; they are kept as well. Each sends its settings at once
            and is used only after the server has answered.
        check_interval: seconds between checks of idle sessions (MIN_TIME or less: CHECK_INTERVAL).
        idle_timeout: seconds until an idle session may be closed (MIN_TIME or less: IDLE_TIMEOUT).
        reuse: whether a session may carry more than one stream.
        on_lost: called with the error when a session ends; None if this side closed it.
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
        on_lost: Callable[[Exception | None], object] = lambda _error: None,
    ) -> None:
        self._connect = connect
        self._hashed = hashed
        self._warm = warm if reuse else 0
        self._min_idle = max(min_idle, warm) if reuse else 0
        self._check_interval = check_interval if check_interval > MIN_TIME else CHECK_INTERVAL
        self._idle_timeout = idle_timeout if idle_timeout > MIN_TIME else IDLE_TIMEOUT
        self._reuse = reuse
        self._on_lost = on_lost
        self._server = ServerState(on_refused=Throttle().warning)
        self._sessions: dict[ClientSession, None] = {}  # oldest first
        self._guard = ReuseGuard()
        self._unfinished: set[ClientSession] = set()  # see _close_unfinished
        self._check_timer: asyncio.TimerHandle | None = None
        self._warming: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def sessions(self) -> Collection[ClientSession]:
        return self._sessions.keys()

    @property
    def idle(self) -> int:
        """Number of sessions without a stream."""
        return sum(session.idle_since is not None for session in self._sessions)

    def start(self) -> None:
        if self._warm and self._warming is None:
            self._warming = asyncio.get_running_loop().create_task(self._warm_up())

    async def open(self, destination: bytes | None = None) -> ClientStream:
        """Open a stream. It is paused, and its protocol is a `Parked`.

        Waits until the server reports that it has reached `destination`, which is encoded by
        `wire.addresses.encode`. Without one, as the upstream of a tunnel, it does not wait: the
        application has no way to learn the outcome.

        Raises what `connect` and `ClientStream.acknowledged` raise. An idle session that turns out
        to be dead is replaced by a new one instead.
        """
        session = self._newest_idle()
        while not self._closed:
            new = session is None
            if session is None:
                session = await self._dial()
            stream = _open_on(session, destination)
            if destination is None:
                stream.expect_answer()
                return stream
            try:
                await stream.acknowledged()
            except DestinationError:
                stream.close()
                raise
            except MttError:
                if new:  # another new session would fail too
                    raise
                session = None  # that took seconds; do not try the other idle sessions
            except BaseException:
                stream.abort()
                raise
            else:
                return stream
        raise NetworkError("the AnyTLS client is closing")

    def open_at_once(self) -> ClientStream | None:
        session = None if self._closed else self._newest_idle()
        if session is None:
            return None
        stream = _open_on(session, None)
        stream.expect_answer()
        return stream

    async def close(self) -> None:
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
            raise again(session.error or NetworkError("the AnyTLS client is closing"))
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
                    session.send_settings()
                    self._guard.verify(session)
                    break
                except MttError as error:
                    log("cannot make a session in advance: %s", describe(error))
                log = logger.debug
                await asyncio.sleep(delay)
                delay = min(2 * delay, most)

    # End of streams and sessions.

    def _changed(self, session: ClientSession) -> None:
        """A stream of `session` ended."""
        if not self._reuse and session.idle_since is not None:
            session.close()

    def _lost(self, session: ClientSession, exc: Exception | None) -> None:
        self._sessions.pop(session, None)
        self._unfinished.discard(session)
        self._guard.discard(session)
        if is_abnormal_end(exc):
            self._guard.verify_all()
        self._on_lost(exc)

    def _schedule_check(self) -> None:
        loop = asyncio.get_running_loop()
        self._check_timer = loop.call_later(self._check_interval, self._close_idle)

    def _close_idle(self) -> None:
        """Close sessions past the idle timeout, oldest first; keep `min_idle`."""
        now = asyncio.get_running_loop().time()
        kept = 0
        for session in reversed(list(self._sessions)):
            since = session.idle_since
            if since is None:
                self._close_unfinished(session)
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

    def _close_unfinished(self, session: ClientSession) -> None:
        """Close a session if the server has not ended its closed stream by the second check."""
        if session.open_streams:
            self._unfinished.discard(session)
        elif session in self._unfinished:
            session.close()
        else:
            self._unfinished.add(session)


def _open_on(session: ClientSession, destination: bytes | None) -> ClientStream:
    stream = session.open_stream(Parked(), destination or TUNNEL_DESTINATION)
    stream.pause_reading()
    return stream
