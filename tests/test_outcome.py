"""From what failed to what is told of it."""

from __future__ import annotations

import errno
import os

import pytest

from mtt.outcome import Outcome, from_error, most_telling


@pytest.mark.parametrize(
    ("number", "outcome"),
    [
        (errno.ECONNREFUSED, Outcome.CONNECTION_REFUSED),
        (errno.ENETUNREACH, Outcome.NETWORK_UNREACHABLE),
        (errno.EHOSTUNREACH, Outcome.HOST_UNREACHABLE),
        (errno.EHOSTDOWN, Outcome.HOST_UNREACHABLE),
        (errno.EACCES, Outcome.NOT_ALLOWED),
        (errno.EPERM, Outcome.NOT_ALLOWED),
        (errno.ETIMEDOUT, Outcome.TIMED_OUT),
        (errno.EMFILE, Outcome.GENERAL_FAILURE),
    ],
)
def test_outcome_of_each_errno(number: int, outcome: Outcome) -> None:
    assert from_error(OSError(number, os.strerror(number))) is outcome


def test_outcome_of_errors_without_errno() -> None:
    assert from_error(TimeoutError()) is Outcome.TIMED_OUT
    assert from_error(OSError("whatever")) is Outcome.GENERAL_FAILURE


def test_most_telling_outcome_of_several_attempts() -> None:
    most = Outcome.CONNECTION_REFUSED
    for outcome in list(Outcome)[1:]:
        assert most_telling([outcome, most]) is most
        assert most_telling([Outcome.GENERAL_FAILURE, outcome]) is outcome
