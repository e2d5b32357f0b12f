"""The time of the next reset of counters."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from mtt_mu_server.months import next_reset


@pytest.mark.parametrize(
    ("day", "now", "expected"),
    [
        (1, "2026-11-30T10:00:00", "2026-12-01"),
        (15, "2026-11-14T23:59:59", "2026-11-15"),
        (15, "2026-11-15T00:00:00", "2026-12-15"),
        (31, "2026-11-29T00:00:00", "2026-11-30"),
        (31, "2026-11-30T00:00:00", "2026-12-31"),
        (31, "2026-12-31T00:00:01", "2027-01-31"),
        (29, "2027-02-01T00:00:00", "2027-02-28"),
        (29, "2028-02-28T12:00:00", "2028-02-29"),
        (30, "2028-02-29T12:00:00", "2028-03-30"),
    ],
)
def test_next_reset(day: int, now: str, expected: str) -> None:
    began = datetime.fromisoformat(now).replace(tzinfo=UTC).timestamp()
    assert datetime.fromtimestamp(next_reset(day, began), UTC).isoformat() == (
        f"{expected}T00:00:00+00:00"
    )
