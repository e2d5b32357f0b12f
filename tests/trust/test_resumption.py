"""Which TLS session is kept, and how often it is asked for."""

from __future__ import annotations

import ssl
from types import SimpleNamespace
from typing import Any

import pytest

from mtt.trust import resumption
from mtt.trust.resumption import READ_INTERVAL, Resumption


class Connection:
    """Stands for an SSLObject, and counts how often its session is read."""

    def __init__(self, *, reused: bool = False, ticket: bool = True) -> None:
        self.session_reused = reused
        self.reads = 0
        self._session = SimpleNamespace(has_ticket=ticket)

    @property
    def session(self) -> Any:
        self.reads += 1
        return self._session


def keep(kept: Resumption, context: ssl.SSLContext, connection: Connection) -> int:
    kept.keep(context, connection)  # type: ignore[arg-type]
    return connection.reads


@pytest.fixture(params=[False, True], ids=["sound", "leaking"])
def leaks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(resumption, "LEAKS", request.param)
    return bool(request.param)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(resumption, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_the_newest_session_with_a_ticket_is_offered(leaks: bool) -> None:
    kept, context = Resumption(), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    assert kept.session(context) is None
    keep(kept, context, Connection())
    assert kept.session(context) is not None
    # Sessions belong to a context; ssl raises when it is given another one's.
    other = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    assert kept.session(other) is None
    keep(kept, other, Connection(ticket=False))
    assert kept.session(other) is None


def test_session_is_read_rarely_where_reading_leaks(leaks: bool, clock: list[float]) -> None:
    kept, context = Resumption(), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    assert keep(kept, context, Connection()) == 1
    assert keep(kept, context, Connection(reused=True)) == (0 if leaks else 1)
    # The server has refused the session: a restart, or it never resumes.
    assert keep(kept, context, Connection()) == (0 if leaks else 1)
    clock[0] += READ_INTERVAL
    assert keep(kept, context, Connection(reused=True)) == (0 if leaks else 1)
    assert keep(kept, context, Connection()) == 1
    # New trust settings have a new context, and no session yet.
    assert keep(kept, ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), Connection()) == 1
