from __future__ import annotations

from mtt import metrics
from mtt.metrics import Counters, Histogram, Now, metric
from mtt.metrics_sum import Page, total
from tests.support.metrics import parse, short


def page(started: float, number: int, lag: float) -> str:
    counters = Counters()
    counters.started = started
    counters.tunnels = number
    histogram = Histogram((0.1, 1.0))
    histogram.add(lag)
    now = Now(*[number] * len(Now._fields))
    return (
        metrics.page(counters, now)
        + histogram.lines("mtt_event_loop_lag_seconds", "Lag.")
        + metric("mtt_event_loop_lag_max_seconds", "gauge", "Most.", lag)
    )


def samples(found: Page) -> dict[str, float]:
    return short(parse(str(found)))


def test_a_page_stays_what_it_is() -> None:
    text = page(5.25, 3, 0.5)
    assert str(Page(text)) == text
    assert str(total([Page(text)])) == text


def test_pages_are_added_up() -> None:
    found = samples(total([Page(page(7.5, 1, 0.05)), Page(page(5.5, 2, 0.5))]))
    assert found["tunnels"] == found["tunnels_opened_total"] == 3
    assert found['transferred_bytes_total{direction="up"}'] == 3
    assert found["start_time_seconds"] == 5.5
    assert found['info{version="0.1.0"}'] == 1
    assert found["event_loop_lag_max_seconds"] == 0.5
    assert found['event_loop_lag_seconds_bucket{le="0.1"}'] == 1
    assert found['event_loop_lag_seconds_bucket{le="+Inf"}'] == 2
    assert found["event_loop_lag_seconds_sum"] == 0.55


def test_what_is_gone_leaves_its_counts() -> None:
    past = Page(page(5.5, 2, 0.5)).lasting()
    found = samples(total([past, Page(page(7.5, 1, 0.05))]))
    assert (found["tunnels"], found["tunnels_opened_total"]) == (1, 3)
    assert found["start_time_seconds"] == 5.5
    assert found["event_loop_lag_max_seconds"] == 0.05
    assert found["event_loop_lag_seconds_count"] == 2
    assert str(total([Page()])) == ""


def test_the_worst_moment_is_kept_until_it_is_told() -> None:
    later = Page(page(5.5, 2, 0.05))
    later.keep_most(Page(page(5.5, 1, 0.5)))
    assert samples(later)["event_loop_lag_max_seconds"] == 0.5
    later.keep_most(Page())
    assert samples(later)["event_loop_lag_max_seconds"] == 0.5
