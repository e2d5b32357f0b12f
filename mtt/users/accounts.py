"""The users of a running server: their passwords and traffic counters."""

from __future__ import annotations

from mtt.observe.metrics import DOWN, UP, Values, labels, metric
from mtt.trust.passwords import Passwords
from mtt.users.directory import Carrier, Directory, OpenConnections, Session

# Users with their own lines in the metrics: the first ones seen. A line costs 100 bytes per scrape,
# and more in the database that stores it. All other users share lines with an empty name, which no
# user can have.
MAX_SHOWN = 1000


class Account(OpenConnections[Carrier]):
    """One user, with counters since the start. Its `tunnels` are the relays of streams."""

    __slots__ = ("_down", "_up", "hashed", "name", "streams")

    def __init__(self, name: str, hashed: bytes) -> None:
        super().__init__()
        self.name = name
        self.hashed = hashed  # the hash of the password
        self.streams = 0  # streams so far, UDP included
        self._up = self._down = 0  # bytes of ended streams

    @property
    def bytes_up(self) -> int:
        """Bytes received from the user."""
        return self._up + sum(carrier.sent for carrier in self.tunnels)

    @property
    def bytes_down(self) -> int:
        """Bytes received for the user."""
        return self._down + sum(carrier.received for carrier in self.tunnels)

    def begin(self, carrier: Carrier) -> None:
        """Count a stream that has reached its destination."""
        self.streams += 1
        self.tunnels[carrier] = None

    def end(self, carrier: Carrier) -> None:
        """Count the end of a stream."""
        self.tunnels.pop(carrier, None)
        self._up += carrier.sent
        self._down += carrier.received


class Accounts(Directory[bytes, Account]):
    """All users, by the hash of their password.

    Args:
        passwords: the users to admit, as for `replace()`.
        prefix: the prefix of the metric names.
    """

    def __init__(self, passwords: dict[str, bytes], *, prefix: str) -> None:
        self._accounts: dict[str, Account] = {}
        self._seen: dict[Account, None] = {}  # in the order of their first session
        self._passwords: Passwords[Account]
        self._prefix = prefix
        self.replace(passwords)

    def __len__(self) -> int:
        return len(self._accounts)

    def find(self, shown: bytes) -> Account | None:
        return self._passwords.find(shown)

    def replace(self, passwords: dict[str, bytes]) -> set[Account]:
        """Admit exactly these users: password hashes by name.

        Returns the accounts that were removed or whose password changed. Users that stay keep their
        counters.
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

    def session_changed(self, account: Account, session: Session) -> None:
        account.session_changed(session)
        if self._accounts.get(account.name) is account:
            self._seen[account] = None

    def page(self) -> str:
        """The counters of all users seen so far, in Prometheus' text format."""
        moved: dict[str, int] = {}
        streams: dict[str, int] = {}
        sessions: dict[str, int] = {}
        for index, account in enumerate(self._seen):
            label = labels(user=account.name if index < MAX_SHOWN else "")
            for way, count in ((UP, account.bytes_up), (DOWN, account.bytes_down)):
                moved[f"{label},{way}"] = moved.get(f"{label},{way}", 0) + count
            streams[label] = streams.get(label, 0) + account.streams
            sessions[label] = sessions.get(label, 0) + len(account.sessions)
        metrics: list[tuple[str, str, str, Values]] = [
            ("transferred_bytes_total", "counter", "Bytes carried for a user; up is from the user.",
             moved),
            ("streams_opened_total", "counter", "Opened streams of a user.", streams),
            ("sessions", "gauge", "Open sessions of a user.", sessions),
        ]  # fmt: skip
        return "".join(
            metric(self._prefix + name, kind, about, values)
            for name, kind, about, values in metrics
        )
