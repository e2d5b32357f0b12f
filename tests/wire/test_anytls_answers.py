"""What servers of AnyTLS say of destinations, ours and others."""

from __future__ import annotations

import pytest

from mtt.outcome import Outcome
from mtt.wire.anytls import outcome_from_text, synack


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("dial tcp 127.0.0.1:1: connect: connection refused", Outcome.CONNECTION_REFUSED),
        ("dial tcp 192.0.2.1:1: connect: network is unreachable", Outcome.NETWORK_UNREACHABLE),
        ("dial tcp 192.0.2.1:1: connect: no route to host", Outcome.HOST_UNREACHABLE),
        ("lookup nowhere.invalid on 192.0.2.53:53: no such host", Outcome.UNRESOLVABLE),
        ("dial tcp 192.0.2.1:1: i/o timeout", Outcome.TIMED_OUT),
        ("context deadline exceeded", Outcome.TIMED_OUT),
        ("Connection timed out", Outcome.TIMED_OUT),
        ("dial tcp 192.0.2.1:1: connect: permission denied", Outcome.NOT_ALLOWED),
        ("something else", Outcome.GENERAL_FAILURE),
        ("", Outcome.GENERAL_FAILURE),
    ],
)
def test_synack_texts_of_servers(text: str, outcome: Outcome) -> None:
    assert outcome_from_text(text) is outcome


def test_own_synack_texts_are_understood() -> None:
    assert synack(Outcome.SUCCEEDED) == b""
    for outcome in list(Outcome)[1:]:
        assert outcome_from_text(synack(outcome).decode()) is outcome
