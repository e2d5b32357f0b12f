"""The users of a server as it runs: who has which password, and what each has used."""

from __future__ import annotations

from typing import Protocol

from mtt.observe.metrics import DOWN, UP, Values, labels, metric
from mtt.trust.passwords import Passwords

# Users with lines of their own on the page of metrics: those that came first. A line costs 100
# bytes in every scrape, and more in the database it goes to. The others have lines together, with
# an empty name, which no user can have.
MAX_SHOWN = 1000


class Carrier(Protocol):
    """What carries bytes for a user, such as a `Relay`."""

    @property
    def sent(self) -> int: ...
    @property
    def received(self) -> int: ...


class Account:
    """One user, and what it has used since the start."""

    __slots__ = ("_down", "_up", "carried", "hashed", "name", "sessions", "streams")

    def __init__(self, name: str, hashed: bytes) -> None:
        self.name = name
        self.hashed = hashed  # the password's
        self.sessions = 0  # that are open
        self.streams = 0  # so far, datagrams' included
        self.carried: set[Carrier] = set()  # what is open of these
        self._up = self._down = 0  # bytes of those that are over

    @property
    def bytes_up(self) -> int:
        """Bytes taken from the user."""
        return self._up + sum(one.sent for one in self.carried)

    @property
    def bytes_down(self) -> int:
        """Bytes taken for the user."""
        return self._down + sum(one.received for one in self.carried)

    def begin(self, carried: Carrier) -> None:
        """A stream of the user has got where it wanted to."""
        self.streams += 1
        self.carried.add(carried)

    def end(self, carried: Carrier) -> None:
        """It is over."""
        self.carried.discard(carried)
        self._up += carried.sent
        self._down += carried.received


class Accounts:
    """All users.

    Args:
        passwords: the users to let in, as `replace()` takes them.
        prefix: what the names of their metrics begin with.
    """

    def __init__(self, passwords: dict[str, bytes], *, prefix: str) -> None:
        self._accounts: dict[str, Account] = {}
        self._seen: dict[Account, None] = {}  # in the order of their coming
        self._passwords: Passwords[Account]
        self._prefix = prefix
        self.replace(passwords)

    def __len__(self) -> int:
        return len(self._accounts)

    def find(self, shown: bytes) -> Account | None:
        """Whose password has the hash `shown`; None if it is nobody's."""
        return self._passwords.find(shown)

    def replace(self, passwords: dict[str, bytes]) -> set[Account]:
        """Let in these users, by name the hashes of their passwords, and nobody else.

        Returns those of the former ones whose password is not theirs any more. Whoever stays keeps
        the counters.
        """
        accounts: dict[str, Account] = {}
        changed: set[Account] = set()
        for name, password in passwords.items():
            account = self._accounts.pop(name, None)
            if account is None:
                account = Account(name, password)
            elif account.hashed != password:
                account.hashed = password
                changed.add(account)
            accounts[name] = account
        for account in self._accounts.values():
            self._seen.pop(account, None)
            changed.add(account)
        self._accounts = accounts
        self._passwords = Passwords((account.hashed, account) for account in accounts.values())
        return changed

    def saw(self, account: Account) -> None:
        """The user is here."""
        if self._accounts.get(account.name) is account:
            self._seen[account] = None

    def page(self) -> str:
        """What those have used who have been here, in Prometheus' text format."""
        moved: dict[str, int] = {}
        streams: dict[str, int] = {}
        sessions: dict[str, int] = {}
        for index, account in enumerate(self._seen):
            who = labels(user=account.name if index < MAX_SHOWN else "")
            for way, count in ((UP, account.bytes_up), (DOWN, account.bytes_down)):
                moved[f"{who},{way}"] = moved.get(f"{who},{way}", 0) + count
            streams[who] = streams.get(who, 0) + account.streams
            sessions[who] = sessions.get(who, 0) + account.sessions
        metrics: list[tuple[str, str, str, Values]] = [
            ("transferred_bytes_total", "counter", "Bytes carried for one user, up being from it.",
             moved),
            ("streams_opened_total", "counter", "Streams of one user so far.", streams),
            ("sessions", "gauge", "Sessions of one user that are open.", sessions),
        ]  # fmt: skip
        return "".join(
            metric(self._prefix + name, kind, about, values)
            for name, kind, about, values in metrics
        )
