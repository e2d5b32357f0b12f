"""The hub of mtt-mu-server's workers: the primary table of users, and the controller.

The workers' connections are entered in `Users` as if they were local: a tunnel's relay is a
`_Carrier`, which holds the byte counts that the worker last reported, and forwards requests to cut
the tunnel.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from mtt.log import logger
from mtt.net.resolve import Resolver
from mtt.observe.hub import Member, WorkerHub
from mtt.process.link import Message, encode
from mtt.users.store import Row
from mtt_mu_server.lease import Lessee
from mtt_mu_server.management import Management
from mtt_mu_server.metrics import Events
from mtt_mu_server.user import Tunnel, User
from mtt_mu_server.users import Users

# Seconds for a worker to apply a change or to report; it usually takes milliseconds. The operator's
# command waits for this, so a worker that takes longer is dropped.
ANSWER_TIME = 5.0
# Seconds for a new worker to load all users.
LOAD_TIME = 30.0
# Users per message: 1 ms of work on either side.
SLICE = 1000
# Characters of paths and destinations per message, unless it has a single user: each takes up to 12
# bytes in JSON, and the controller accepts 2 MiB at a time.
SLICE_TEXT = 512 * 1024


class MultiUserHub(WorkerHub["UserMember"]):
    """Holds `users` for several workers, which report `events` to it."""

    def __init__(self, management: Management, users: Users, events: Events) -> None:
        super().__init__(lambda lost: UserMember(self, lost))
        self.users = users
        self.events = events
        self._management = management
        self._full: set[str] = set()
        self._numbers = itertools.count(1)
        users.block_changed = self._block_changed
        users.watch_changed = self._watch_changed
        management.replicate_to(self, self.page)

    async def start(self) -> None:
        try:
            await self._management.load()
            await self._management.start(Resolver())
        except BaseException:
            self.cleanup()
            await self._management.close()
            raise
        if self._management.tls is not None:
            self._management.tls.follow()
        logger.info("%s", self._management.describe())

    def cleanup(self) -> None:
        self._management.cleanup()

    def reload(self) -> None:
        if self._management.tls is not None:
            self._management.tls.reload()

    async def close(self) -> None:
        await self._management.stop()
        await super().close()
        if self._management.tls is not None:
            await self._management.tls.close()
        await self._management.close()

    def own_page(self) -> str:
        from mtt.observe.certificates import certificate_lines

        tls = self._management.tls
        return super().own_page() + certificate_lines((tls,) if tls is not None else ())

    # Changes, see `Replicas`.

    async def put(self, rows: dict[str, Row]) -> None:
        await self._change((encode("put", piece) for piece in _slices(rows)), rows)

    async def remove(self, paths: list[str]) -> None:
        pieces = (paths[start : start + SLICE] for start in range(0, len(paths), SLICE))
        await self._change((encode("remove", piece) for piece in pieces), paths)

    async def clear(self) -> None:
        await self._change([encode("clear")], self._concerned())

    async def settle(self) -> None:
        await self._answers("report")

    async def _change(self, messages: Iterable[bytes], paths: Iterable[str]) -> None:
        """Make a change of `paths` in all workers."""
        for data in messages:
            for member in self._loaded():
                member.link.send_encoded(data)
            await asyncio.sleep(0)
        await self._answers("apply")
        for path in self._concerned().intersection(paths):
            self.update_room(path)

    async def _answers(self, kind: str) -> None:
        """Send `kind` to all workers, and wait until they have executed it."""
        number = next(self._numbers)
        asked = {member.ask(kind, number): member for member in self._loaded()}
        if not asked:
            return
        _, late = await asyncio.wait(asked, timeout=ANSWER_TIME)
        for answer in late:
            logger.error("a worker does not answer; it was dropped")
            asked[answer].link.abort()

    def _loaded(self) -> list[UserMember]:
        return [member for member in self.members if member.loaded]

    async def welcome(self, member: UserMember) -> None:
        """Send all users to a new worker; no change comes in between."""
        try:
            member.link.send("watched", self.users.is_watched)
            async with asyncio.timeout(LOAD_TIME), self._management.commands.changing:
                member.loading = True
                for piece in _slices(self.users.rows):
                    member.link.send("put", piece)
                    member.link.send("apply", 0)  # in parts: the worker does not serve yet
                    await asyncio.sleep(0)
                    await member.link.drained()
                for paths in _pieces(list(self.users.blocked)):
                    # Later changes go to workers that are loading, too; this one is of now.
                    blocked = [path for path in paths if path in self.users.blocked]
                    member.link.send("blocked", blocked, True)
                    await asyncio.sleep(0)
                    await member.link.drained()
                for path in self._full:
                    member.link.send("full", path, True)
                member.loaded = True
                member.link.send("loaded")
        except TimeoutError:
            logger.error("a new worker did not load the users in time; it was dropped")
            member.link.abort()

    # Limits.

    def update_room(self, path: str) -> None:
        """Notify the workers if `path` has reached its limit, or is below it again."""
        user = self.users.find(path)
        full = user is not None and not self.users.has_room(user)
        if full != (path in self._full):
            (self._full.add if full else self._full.discard)(path)
            for member in self._loaded():
                member.link.send("full", path, full)

    def _block_changed(self, path: str, blocked: bool) -> None:
        for member in self.members:
            if member.loading:
                member.link.send("blocked", [path], blocked)

    def _watch_changed(self, watched: bool) -> None:
        for member in self.members:
            member.link.send("watched", watched)

    def _concerned(self) -> set[str]:
        return self._full.union(self.users.live_paths())


class UserMember(Member):
    """One worker, and the connections of its users."""

    def __init__(self, hub: MultiUserHub, lost: Callable[[UserMember], object]) -> None:
        super().__init__(lost)
        self._hub = hub
        self._users = hub.users
        self.loading = False  # from the start of loading on, gets all changes of blocks
        self.loaded = False  # gets all other changes
        self._tunnels: dict[int, Tunnel] = {}
        self._sessions: dict[int, _Session] = {}
        self._lessees: dict[tuple[str, int], Lessee] = {}
        self._answers: dict[int, asyncio.Future[None]] = {}

    def ask(self, kind: str, number: int) -> asyncio.Future[None]:
        """Send `kind`; the future is done with the answer, or when the worker is gone."""
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        self.link.send(kind, number)
        return answer

    def handle(self, message: Message) -> None:
        match message:
            case ["enter", int(number), str(path), bool(limited), *peer]:
                self._enter(number, path, limited, *peer)
            case ["leave", int(number), int(sent), int(received), *reason]:
                self._leave(number, sent, received, *reason)
            case ["refused", str(path), str(peer)]:
                self._users.refused(path, peer)
            case ["moved", list(moved)]:
                for number, sent, received in zip(*[iter(moved)] * 3, strict=True):
                    self._moved(number, sent, received)
            case ["session", int(number), str(path)]:
                self._session(number, path)
            case ["session_over", int(number)]:
                self._session_over(number)
            case ["want", str(path), int(direction), int(tokens)]:
                self._want(path, direction, tokens)
            case ["idle", str(path)]:
                for direction in (0, 1):
                    if lessee := self._lessees.pop((path, direction), None):
                        lessee.leave()
            case ["events", int(unknown), int(full), int(dial_failures)]:
                events = self._hub.events
                events.unknown += unknown
                events.full += full
                events.dial_failures += dial_failures
            case ["done", int(number)]:
                if number in self._answers:
                    self._answers.pop(number).set_result(None)
            case _:
                super().handle(message)

    def lost(self) -> None:
        for lessee in self._lessees.values():
            lessee.leave()
        for number in list(self._tunnels):
            self._tunnels[number].reason = "its worker has ended"
            self._gone(number)
        for number in list(self._sessions):
            self._session_over(number)
        for answer in self._answers.values():
            if not answer.done():
                answer.set_result(None)
        self._answers.clear()
        super().lost()

    def _enter(self, number: int, path: str, limited: bool, peer: str = "") -> None:
        user = self._users.find(path)
        if not limited:
            # The worker has already admitted it. The user may have been deleted or limited since.
            dst, rate = (user.dst, user.rate) if user is not None else ("", 0)
            user = User(path, dst, 0, rate)
        tunnel = self._users.enter(user, None, peer) if user is not None else None
        if tunnel is None:
            self._users.refused(path, peer)
        if limited:
            self.link.send("admission", number, tunnel is not None)
        if tunnel is not None and user is not None:
            tunnel.relay = _Carrier(lambda reason: self.link.send("cut", number, reason))
            self._tunnels[number] = tunnel
            self._users.buckets(user)
            self._hub.update_room(path)

    def _moved(self, number: int, sent: int, received: int) -> None:
        carrier = self._tunnels[number].relay
        assert isinstance(carrier, _Carrier)
        carrier.sent, carrier.received = sent, received

    def _leave(self, number: int, sent: int, received: int, reason: str = "") -> None:
        if number in self._tunnels:  # otherwise it was not admitted
            self._tunnels[number].reason = reason
            self._moved(number, sent, received)
            self._gone(number)

    def _gone(self, number: int) -> None:
        tunnel = self._tunnels.pop(number)
        self._users.leave(tunnel)
        self._hub.update_room(tunnel.path)

    def _session(self, number: int, path: str) -> None:
        user = self._users.find(path) or User(path, "")  # it may have been deleted since
        session = _Session(user, lambda: self.link.send("cut_session", number))
        has_room = self._users.has_room(user)
        self._sessions[number] = session
        self._users.session_changed(user, session)
        self._hub.update_room(path)
        if not has_room:  # two sessions started at the same time
            session.abort()

    def _session_over(self, number: int) -> None:
        session = self._sessions.pop(number)
        session.lost = True
        self._users.session_changed(session.user, session)
        self._hub.update_room(session.user.path)

    def _want(self, path: str, direction: int, tokens: int) -> None:
        lessee = self._lessees.get((path, direction))
        if lessee is None:
            buckets = self._users.known_buckets(path)
            if buckets is None:  # the last tunnel has just ended
                self.link.send("tokens", path, direction, tokens)
                return
            give = partial(self.link.send, "tokens", path, direction)
            lessee = Lessee(buckets[direction], give)
            self._lessees[path, direction] = lessee
        lessee.want(tokens)


@dataclass(slots=True, eq=False)
class _Carrier:
    """Represents the relay of a tunnel in a worker."""

    abort: Callable[[str], None]
    sent: int = 0
    received: int = 0


@dataclass(slots=True, eq=False)
class _Session:
    """Represents a multiplexed connection in a worker."""

    user: User
    abort: Callable[[], None]
    lost: bool = False


def _pieces(paths: list[str]) -> Iterator[list[str]]:
    """Parts of `paths` that fit into messages; see `_slices`."""
    return (list(piece) for piece in _slices(dict.fromkeys(paths, ("", 0, 0, 0))))


def _slices(rows: dict[str, Row]) -> Iterator[dict[str, Row]]:
    piece: dict[str, Row] = {}
    text = 0
    for path, row in rows.items():
        text += len(path) + len(row[0])
        if piece and (len(piece) == SLICE or text > SLICE_TEXT):
            yield piece
            piece, text = {}, len(path) + len(row[0])
        piece[path] = row
    if piece:
        yield piece
