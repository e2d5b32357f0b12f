"""Streams that an agent of a gateway connects to their targets.

    open -> SYN, head -> the agent resolves, checks its rules, dials -> answer -> parked stream

An agent that says nothing within QUESTION_TIME is asked for a sign of life. Without one its session
is cut, so that all its users try another agent at once. See `LifeCheck`.
"""

from __future__ import annotations

import asyncio
from typing import Any, Generic, TypeVar

from mtt.errors import Cause, DestinationError, MttError, NetworkError, PeerError, again, describe
from mtt.layers.base import StreamTransport
from mtt.layers.mux import MuxSession
from mtt.layers.smux import SmuxSession
from mtt.layers.stream_head import StreamHead
from mtt.outcome import Outcome
from mtt.wire.agent import Answer, Head, parse_answer

# Seconds that an agent has to answer. It resolves the name (5 s) and dials (10 s).
ANSWER_TIME = 20.0
# Seconds without an answer until the agent is asked for a sign of life, and then without any until
# its session is cut. Connecting to most targets takes less than the first.
QUESTION_TIME = 3.0
SIGN_TIME = 3.0
# Streams of a session. It bounds what an agent's session costs the gateway, and the other way
# round; a browser opens dozens, a page behind an agent has hundreds of users.
MAX_STREAMS = 4096

Session = TypeVar("Session", bound=MuxSession[Any])


class AgentSession(Generic[Session]):
    """A connection from an agent, on which the gateway opens streams.

    Attributes:
        is_draining: whether the agent wants no new streams.
    """

    def __init__(self, session: Session) -> None:
        self.is_draining = False
        self._session = session
        self._life = LifeCheck(session)

    @property
    def lost(self) -> bool:
        """Whether the connection is over."""
        return self._session.lost

    @property
    def bottom(self) -> StreamTransport:
        """The socket of the connection, which is also that of each stream."""
        return self._session.bottom

    @property
    def open_streams(self) -> int:
        """Number of streams for users."""
        return self._session.open_streams

    @property
    def is_usable(self) -> bool:
        """Whether it takes a new stream now, as far as is known."""
        raise NotImplementedError

    async def open(self, head: Head) -> StreamTransport:
        """Return a parked stream to the head's target, which the agent has reached.

        Raises DestinationError if the agent could not reach it, with the outcome NO_AGENT if the
        agent is leaving, OVERLOADED if it has too many connections; raises another MttError if the
        agent is unusable.
        """
        raise NotImplementedError

    def close(self) -> None:
        """End the session and its streams; what was written is delivered."""
        self._session.close()

    def abort(self, error: Exception | None = None) -> None:
        """Cut the session."""
        self._session.abort(error)


class OwnAgentSession(AgentSession[SmuxSession]):
    """The session of an agent that is this program: smux, see `mtt.wire.agent`.

    Attributes:
        control: the agent's own stream, which no user waits for.
    """

    def __init__(self, session: SmuxSession) -> None:
        super().__init__(session)
        self.control: StreamTransport | None = None

    @property
    def open_streams(self) -> int:
        control = self.control
        own = control is not None and not control.is_closing()
        return super().open_streams - own

    @property
    def is_usable(self) -> bool:
        session = self._session
        return session.healthy and session.has_room and not (session.lost or self.is_draining)

    async def open(self, head: Head) -> StreamTransport:
        session = self._session
        if not (session.has_room or session.exhausted or session.lost):
            raise DestinationError(Outcome.OVERLOADED)  # the agent would refuse the stream
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[tuple[StreamTransport, Answer]] = loop.create_future()

        def ready(stream: StreamTransport, answer: Answer) -> None:
            if answered.done():  # cancelled
                stream.abort()
            else:
                answered.set_result((stream, answer))

        def failed(_: StreamTransport, error: Exception) -> None:
            if not answered.done():
                answered.set_exception(_as_failure(error))

        reader = StreamHead(parse_answer, ready, failed, what="answer", seconds=ANSWER_TIME)
        stream: StreamTransport = session.open_stream(reader)
        stream.write(head.encode())
        timer = loop.call_later(QUESTION_TIME, self._life.ask)
        try:
            stream, answer = await answered
        except MttError as error:
            raise again(error) from None
        except BaseException:
            stream.abort()
            raise
        finally:
            timer.cancel()
        if answer.outcome is not Outcome.SUCCEEDED:
            stream.close()
            raise DestinationError(answer.outcome)
        return stream


class LifeCheck:
    """Asks an agent for a sign of life, and cuts its session if there is none.

    The question and its answer may stand behind data that fills a slow line. So the session lives
    as long as the agent sends, or its kernel acknowledges what was sent before the question.
    """

    __slots__ = ("_session", "_timer")

    def __init__(self, session: MuxSession[Any]) -> None:
        self._session = session
        self._timer: asyncio.TimerHandle | None = None  # while a question is open

    def ask(self) -> None:
        """Ask, because a stream has no answer yet."""
        if self._session.lost:
            return
        if self._timer is not None:
            if not self._session.ping_answered():
                return  # another question would make the answer to the first one worthless
            self._timer.cancel()
        self._session.ping()
        self._look_later()

    def _look_later(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(SIGN_TIME, self._look, self._session.ping_progress())

    def _look(self, before: tuple[float, int]) -> None:
        self._timer = None
        session = self._session
        if session.lost or session.ping_answered():
            return
        if session.ping_progress() > before or not session.is_reading:
            self._look_later()
        else:
            session.abort(NetworkError("no sign of life from the agent"))


def _as_failure(error: Exception) -> MttError:
    """The error of a stream that has got no answer."""
    if isinstance(error, PeerError):
        return PeerError(f"the agent's answer is malformed: {error}")
    if isinstance(error, NetworkError) and error.cause is Cause.TIMEOUT:
        return DestinationError(Outcome.TIMED_OUT)
    return NetworkError(f"the agent did not answer: {describe(error)}")
