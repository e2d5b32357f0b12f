"""Failover between several upstreams.

Upstreams are tried in the given order. An unusable upstream goes into backoff: it is tried last for
a while. After that a single stream tries it again, without delaying the others. Each further
failure doubles the backoff.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Generic, Protocol, TypeVar

from mtt.errors import DestinationError, MttError, NetworkError
from mtt.log import logger

# The first and the longest backoff, seconds; each further one is twice as long. The one stream that
# retries an upstream whose address does not answer loses the time of a connection attempt.
FIRST_BACKOFF, MAX_BACKOFF = 30.0, 1800.0

# No further upstream is tried for a stream that has waited this long, seconds: the application is
# about to give up (curl and browsers: 30 s and more for a proxy). The failed upstreams are in
# backoff by then, so the next stream tries the others first.
FAILOVER_TIME = 20.0


class Choice(Protocol):
    """A server that the balancer chooses from."""

    @property
    def name(self) -> str: ...

    def start(self) -> None:
        """Prepare resources in advance; called after each success."""


Stream = TypeVar("Stream")
AnyChoice = TypeVar("AnyChoice", bound=Choice)


class Candidate(Generic[AnyChoice]):
    """One upstream and its backoff."""

    def __init__(self, upstream: AnyChoice) -> None:
        self.upstream = upstream
        self._backoff = 0.0  # seconds; 0 after a success
        self._backoff_until = 0.0

    @property
    def is_in_backoff(self) -> bool:
        """Whether the other upstreams go first."""
        return _now() < self._backoff_until

    def begin_attempt(self) -> None:
        """Start an attempt. A retry after a backoff starts the next backoff for other streams."""
        if self._backoff and not self.is_in_backoff:
            self._begin_backoff()

    def succeeded(self) -> None:
        """Record that the upstream is usable."""
        if self._backoff:
            logger.info("%s can be used again", self.upstream.name)
            self._backoff = self._backoff_until = 0.0
        self.upstream.start()

    def failed(self) -> None:
        """Record that the upstream was unusable."""
        if not self.is_in_backoff:
            self._begin_backoff()

    def _begin_backoff(self) -> None:
        self._backoff = min(2 * self._backoff, MAX_BACKOFF) or FIRST_BACKOFF
        self._backoff_until = _now() + self._backoff


class Balancer(Generic[AnyChoice]):
    """Tries upstreams in order of preference.

    Args:
        upstreams: at least one, the preferred one first.
    """

    def __init__(self, upstreams: Iterable[AnyChoice]) -> None:
        self._candidates = [Candidate(upstream) for upstream in upstreams]

    async def open(self, ask: Callable[[AnyChoice], Awaitable[Stream]]) -> Stream:
        """Open a stream on the first usable upstream.

        Args:
            ask: opens a stream on an upstream. Its DestinationError is final; after any other
                MttError the next upstream is tried.

        Raises DestinationError if the destination is unreachable, and another MttError if no
        upstream is usable.
        """
        started = _now()
        errors: list[MttError] = []
        for candidate in sorted(self._candidates, key=lambda candidate: candidate.is_in_backoff):
            if errors and _now() - started >= FAILOVER_TIME:
                break
            name = candidate.upstream.name
            candidate.begin_attempt()
            try:
                stream = await ask(candidate.upstream)
            except DestinationError:
                candidate.succeeded()
                raise
            except MttError as error:
                candidate.failed()
                errors.append(_with_name(name, error).with_traceback(None))
            else:
                candidate.succeeded()
                for failure in errors:
                    logger.warning("%s; %s is used instead", failure, name)
                return stream
        if len(errors) == 1:
            raise errors.pop()  # pop, not [0]: its traceback refers to this frame (a cycle)
        raise NetworkError("; ".join(map(str, errors)), cause=errors[0].cause)


def _with_name(name: str, error: MttError) -> MttError:
    """Add the upstream's name to errors that lack it: those that end a session."""
    if name in str(error):
        return error
    return type(error)(f"{name}: {error}", cause=error.cause)


def _now() -> float:
    return asyncio.get_running_loop().time()
