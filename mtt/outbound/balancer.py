"""Several upstreams, and which one is asked for a stream.

They are asked in the order in which they were given. One that cannot be used rests for a while:
it comes behind the others then. After that a single stream tries it again, the others do not wait
for how that goes; and each time in vain makes the rest longer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Generic, Protocol, TypeVar

from mtt.errors import DestinationError, MttError, NetworkError
from mtt.log import logger

# Seconds of the first rest; each further one is twice as long. The one stream that tries an
# upstream whose address does not answer loses the time to connect.
FIRST_REST, LAST_REST = 30.0, 1800.0

# No further upstream is asked for a stream that has waited so long, seconds: the application gives
# up about now (curl and browsers: 30 s and more for a proxy). Those that were asked rest by then,
# so the next stream comes to the others.
PATIENCE = 20.0


class Upstream(Protocol):
    """Something that may be asked for a stream."""

    @property
    def name(self) -> str: ...

    def start(self) -> None:
        """Make ready what needs no stream; called each time it turns out to work."""


Stream = TypeVar("Stream")
AnyUpstream = TypeVar("AnyUpstream", bound=Upstream)


class Candidate(Generic[AnyUpstream]):
    """One upstream, and how it did so far."""

    def __init__(self, upstream: AnyUpstream) -> None:
        self.upstream = upstream
        self._rest = 0.0  # seconds, of the last one; 0 if it works as far as we know
        self._rests_until = 0.0

    @property
    def rests(self) -> bool:
        """Whether others should be asked first."""
        return _now() < self._rests_until

    def asked(self) -> None:
        """A stream tries it now; after a rest the others begin the next one meanwhile."""
        if self._rest and not self.rests:
            self._begin_rest()

    def worked(self) -> None:
        """It can be used."""
        if self._rest:
            logger.info("%s can be used again", self.upstream.name)
            self._rest = self._rests_until = 0.0
        self.upstream.start()

    def failed(self) -> None:
        """It could not be used."""
        if not self.rests:
            self._begin_rest()

    def _begin_rest(self) -> None:
        self._rest = min(2 * self._rest, LAST_REST) or FIRST_REST
        self._rests_until = _now() + self._rest


class Balancer(Generic[AnyUpstream]):
    """Asks one upstream after the other.

    Args:
        upstreams: at least one, the preferred one first.
    """

    def __init__(self, upstreams: Iterable[AnyUpstream]) -> None:
        self._candidates = [Candidate(upstream) for upstream in upstreams]

    async def open(self, ask: Callable[[AnyUpstream], Awaitable[Stream]]) -> Stream:
        """The stream that the first upstream gives which can be used.

        Args:
            ask: opens the stream at an upstream. A DestinationError of it is the last word, after
                another MttError the next upstream is asked.

        Raises DestinationError: it could not be reached; other MttErrors: no upstream can be asked.
        """
        started = _now()
        errors: list[MttError] = []
        for candidate in sorted(self._candidates, key=lambda candidate: candidate.rests):
            if errors and _now() - started >= PATIENCE:
                break
            name = candidate.upstream.name
            candidate.asked()
            try:
                stream = await ask(candidate.upstream)
            except DestinationError:
                candidate.worked()
                raise
            except MttError as error:
                candidate.failed()
                errors.append(_naming(name, error).with_traceback(None))
            else:
                candidate.worked()
                for why in errors:
                    logger.warning("%s; %s is used instead", why, name)
                return stream
        if len(errors) == 1:
            raise errors.pop()  # and does not keep it: it refers to this frame
        raise NetworkError("; ".join(map(str, errors)), cause=errors[0].cause)


def _naming(name: str, error: MttError) -> MttError:
    """`error` with the name of the upstream in it; only what ends a session has none."""
    if name in str(error):
        return error
    return type(error)(f"{name}: {error}", cause=error.cause)


def _now() -> float:
    return asyncio.get_running_loop().time()
