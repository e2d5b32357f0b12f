"""Streams through agents that are the Go program of AnyProxy."""

from __future__ import annotations

import asyncio

from mtt.errors import DestinationError, MttError, NetworkError
from mtt.layers.anyproxy import GoSession
from mtt.layers.base import StreamTransport
from mtt.layers.parked import Parked, park
from mtt.outbound.agent import QUESTION_TIME, AgentSession
from mtt.outbound.go_datagrams import GoDatagrams
from mtt.outcome import Outcome
from mtt.wire.agent import UDP, Head

# Seconds that a Go agent has to answer: it dials for 30 s.
ANSWER_TIME = 35.0


class GoAgentSession(AgentSession[GoSession]):
    """The session of an agent that is the Go program.

    Args:
        session: with the limit of streams, and callbacks for the end of streams, for requests of
            ports and for its loss. The gateway starts it with
            `session.message_layer(client=False).start(transport)`.
    """

    @property
    def is_usable(self) -> bool:
        session = self._session
        return not (session.lost or self.is_draining) and session.is_healthy and session.has_room

    async def open(self, head: Head) -> StreamTransport:
        """Return a parked stream to the head's target; for UDP, one to all targets.

        Raises as `AgentSession.open`.
        """
        session = self._session
        if head.network == UDP:
            if session.lost:
                raise NetworkError("the agent's session is over")
            datagrams = GoDatagrams(session)
            park(datagrams, b"")
            return datagrams
        if not (session.has_room or session.lost):
            raise DestinationError(Outcome.OVERLOADED)
        parked = Parked()
        stream = session.open_stream(parked, head)
        loop = asyncio.get_running_loop()
        timers = (
            loop.call_later(QUESTION_TIME, self._life.ask),
            loop.call_later(ANSWER_TIME, stream.receive_answer, Outcome.TIMED_OUT),
        )
        try:
            return await parked.opened()
        except MttError:
            raise
        except BaseException:
            stream.abort()
            raise
        finally:
            for timer in timers:
                timer.cancel()
