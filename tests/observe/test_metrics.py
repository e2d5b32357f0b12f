"""Counting, and Prometheus' text format."""

from __future__ import annotations

import asyncio
import ssl
import time
from types import SimpleNamespace

import pytest

from mtt.errors import (
    Cause,
    MttError,
    NetworkError,
    NothingSaidError,
    PeerError,
    RefusedError,
)
from mtt.observe import lag as module
from mtt.observe.lag import LAG_INTERVAL, LagMeter
from mtt.observe.metrics import Counters, Histogram, Snapshot, labels, metric, page
from mtt.trust.failures import tls_cause
from mtt.wire.http1 import HttpError
from mtt.wire.upgrade import UpgradeRefused
from tests.support.clock import Clock
from tests.support.metrics import check_with_promtool, failures, parse, short

NOTHING = Snapshot(0, 0, 0, 0, 0, 0, 0, 0, 0)


def test_a_metric() -> None:
    assert metric("a_b", "gauge", "What it is.", 3) == (
        "# HELP a_b What it is.\n# TYPE a_b gauge\na_b 3\n"
    )
    assert metric("c_total", "counter", "X.", {labels(of="x", by="y"): 1.5, labels(of="z"): 0}) == (
        '# HELP c_total X.\n# TYPE c_total counter\nc_total{of="x",by="y"} 1.5\nc_total{of="z"} 0\n'
    )


def test_labels_and_help_texts_are_escaped() -> None:
    text = metric("a", "gauge", 'one\ntwo "three" \\', {labels(x='"\n\\'): 1})
    assert text == '# HELP a one\\ntwo "three" \\\\\n# TYPE a gauge\na{x="\\"\\n\\\\"} 1\n'
    assert len(parse(text)) == 1


def test_a_histogram() -> None:
    histogram = Histogram((0.1, 1.0))
    for value in (0.0, 0.1, 0.5, 1.0, 7.0):
        histogram.add(value)
    assert parse(histogram.lines("h", "H.")) == {
        'h_bucket{le="0.1"}': 2, 'h_bucket{le="1.0"}': 4, 'h_bucket{le="+Inf"}': 5,
        "h_sum": 8.6, "h_count": 5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (PeerError("x"), Cause.OTHER),
        (PeerError("x", cause=Cause.TLS), Cause.TLS),
        (NetworkError("x", cause=Cause.EOF), Cause.EOF),
        (NothingSaidError("x"), Cause.SILENT),
        (RefusedError("x"), Cause.CERTIFICATE),
        (HttpError(400, "x"), Cause.HTTP),
        (UpgradeRefused(400, "x"), Cause.HTTP),
        (TimeoutError(), Cause.TIMEOUT),
        (ValueError("cause"), Cause.OTHER),
        (None, Cause.OTHER),
    ],
)
def test_causes(error: Exception | None, cause: Cause) -> None:
    counters = Counters()
    counters.failed(error)
    assert failures(short(parse(page(counters, NOTHING)))) == {cause: 1}
    if isinstance(error, MttError) and not isinstance(error, HttpError):
        assert str(error).endswith("x")


@pytest.mark.parametrize(
    ("reason", "cause"),
    [
        ("HTTP_REQUEST", Cause.PLAINTEXT_HTTP),
        ("HTTPS_PROXY_REQUEST", Cause.PLAINTEXT_HTTP),
        ("CERTIFICATE_VERIFY_FAILED", Cause.CERTIFICATE),
        ("PEER_DID_NOT_RETURN_A_CERTIFICATE", Cause.CERTIFICATE),
        ("SSLV3_ALERT_CERTIFICATE_UNKNOWN", Cause.CERTIFICATE),
        ("TLSV1_ALERT_UNKNOWN_CA", Cause.CERTIFICATE),
        ("WRONG_VERSION_NUMBER", Cause.TLS),
        ("", Cause.TLS),
    ],
)
def test_causes_of_openssl(reason: str, cause: Cause) -> None:
    error = ssl.SSLError()
    error.reason = reason
    assert tls_cause(error) is cause


def test_ends_of_sessions() -> None:
    counters = Counters()
    for error in (None, NetworkError("gone"), PeerError("smux: version 9"), RefusedError("who?")):
        counters.session_over(error)
    assert counters.session_failures == 1
    assert counters.handshake_failures[Cause.CERTIFICATE] == 1


def test_failures_to_dial() -> None:
    counters = Counters()
    with pytest.raises(NetworkError), counters.dialling():
        raise NetworkError("nobody there")
    with counters.dialling():
        pass
    with pytest.raises(asyncio.CancelledError), counters.dialling():
        raise asyncio.CancelledError
    assert counters.dial_failures == 1


async def test_the_page() -> None:
    lag = LagMeter()
    lag.start()
    text = page(Counters(), NOTHING) + lag.lines()
    lag.stop()
    samples = parse(text)
    for cause in Cause:
        assert samples[f'mtt_handshake_failures_total{{cause="{cause}"}}'] == 0
    assert abs(samples["mtt_start_time_seconds"] - time.time()) < 60
    check_with_promtool(text.encode())


async def test_lag_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, module)
    busy = 0.0
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now + busy))
    lag = LagMeter()
    lag.start()
    busy = LAG_INTERVAL + 0.3  # holds up the loop, whose own clock may stand still meanwhile
    during = parse(lag.lines())
    clock.now, busy = clock.now + busy, 0.0
    await clock.passes(0)
    after = parse(lag.lines())
    again = parse(lag.lines())
    lag.stop()
    assert 0.29 < during["mtt_event_loop_lag_max_seconds"] < 0.31
    assert 0.29 < after["mtt_event_loop_lag_max_seconds"] < 0.31
    assert after["mtt_event_loop_lag_seconds_count"] == 1
    assert after["mtt_event_loop_lag_seconds_sum"] == after["mtt_event_loop_lag_max_seconds"]
    assert after['mtt_event_loop_lag_seconds_bucket{le="0.25"}'] == 0
    assert again["mtt_event_loop_lag_max_seconds"] == 0
