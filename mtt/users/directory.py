"""The contract of a directory of users, and what directories keep of a user's open connections.

A server finds the user of a connection by a secret that the client shows.

    directory                            secret                what is counted
    mtt.users.accounts.Accounts          hash of a password    relays, since the start
    mtt_mu_server.users.Users            path of a request     tunnels, in counters that are saved
    mtt_mu_server.replica.UserReplica    path of a request     nothing; it reports to the hub

A `LimitedDirectory` admits a connection before its destination is dialled, so it needs an object
for each. Accounts have no limits and count what has reached its destination, for which the relay is
enough. Only metrics read accounts, so they add up their relays when asked. Counters that are saved
live longer or shorter than the user's tunnels, so they grow by what has moved since the last look.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Generic, Protocol, TypeVar

from mtt.layers.base import StreamTransport
from mtt.tunnels.rate_limit import Bucket, TokenSource

# Work that yields to let the event loop run.
Steps = Generator[None, None, None]


class Connection(Protocol):
    """An open connection of a user."""

    def abort(self, reason: str) -> None:
        """Cut it."""


class Carrier(Connection, Protocol):
    """Carries the bytes of a connection: a relay, in this or another process."""

    @property
    def sent(self) -> int:
        """Bytes so far, from the user."""

    @property
    def received(self) -> int:
        """Bytes so far, to the user."""


class Session(Protocol):
    """A multiplexed connection, in this or another process."""

    lost: bool

    def abort(self) -> None:
        """Cut it."""


Secret = TypeVar("Secret", contravariant=True)
Found = TypeVar("Found")
Admitted = TypeVar("Admitted")
Open = TypeVar("Open", bound=Connection)


class Directory(Protocol[Secret, Found]):
    """All users of a server."""

    def find(self, secret: Secret, /) -> Found | None:
        """The user who has this secret, unless expired."""

    def session_changed(self, user: Found, session: Session, /) -> None:
        """Record the start or end of a multiplexed connection."""


class LimitedDirectory(Directory[Secret, Found], Protocol[Secret, Found, Admitted]):
    """All users of a server, with limits of connections and rates."""

    def has_room(self, user: Found, /) -> bool:
        """Whether the user may have another connection, as far as is known here."""

    def enter(self, user: Found, stream: StreamTransport, /) -> Admitted | None:
        """Admit a connection; None if the user has as many as allowed."""

    async def admitted(self, connection: Admitted, /) -> bool:
        """Whether the admission by `enter` is confirmed, by what counts for all processes."""

    def leave(self, connection: Admitted, /) -> None:
        """Record the end of an admitted connection."""

    def buckets(self, user: Found, /) -> tuple[TokenSource, TokenSource] | None:
        """The rate limit of the user's next connection, up and down; None without one."""


class OpenConnections(Generic[Open]):
    """The open connections of one user, and the rate limit that they share.

    The tables are dicts because an empty one takes 64 bytes, and an empty set 216.
    """

    __slots__ = ("buckets", "sessions", "tunnels")

    def __init__(self) -> None:
        self.tunnels: dict[Open, None] = {}
        self.sessions: dict[Session, None] = {}
        self.buckets: tuple[Bucket, Bucket] | None = None  # up, down

    def session_changed(self, session: Session) -> None:
        """Record the start or end of a multiplexed connection."""
        if session.lost:
            self.sessions.pop(session, None)
        else:
            self.sessions[session] = None

    def has_room(self, max_conns: int) -> bool:
        """Whether the user may have another connection (0: unlimited).

        Streams count, and multiplexed connections as such are limited as well: without streams they
        cost as much as other connections.
        """
        return not max_conns or max(len(self.tunnels), len(self.sessions)) < max_conns

    def limited_to(self, rate: int) -> tuple[Bucket, Bucket]:
        """The buckets of the rate limit, in bytes per second; their rate changes for all."""
        if self.buckets is None:
            self.buckets = Bucket(rate), Bucket(rate)
        for bucket in self.buckets:
            bucket.rate = rate
        return self.buckets

    def cut(self, reason: str) -> Steps:
        """Cut all; one step per connection."""
        for tunnel in list(self.tunnels):
            tunnel.abort(reason)
            yield
        for session in list(self.sessions):
            session.abort()
            yield
