"""The Date header."""

from __future__ import annotations

from email.utils import formatdate

import pytest

from mtt.http.date import format_date, http_date

MONTH, DAY = 30 * 86_400, 86_400


@pytest.mark.parametrize("start", [0, 951_782_399, 2**31 - 1, 4_102_444_800])
def test_date_is_that_of_the_standard_library(start: int) -> None:
    for step in (MONTH, DAY, 3_607):
        for number in range(13):
            now = start + number * step
            assert format_date(now) == formatdate(now, usegmt=True)


def test_date_is_that_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtt.http.date.time.time", lambda: 784111777.9)
    assert http_date() == "Sun, 06 Nov 1994 08:49:37 GMT"  # RFC 9110's example
