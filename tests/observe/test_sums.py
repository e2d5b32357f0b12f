from __future__ import annotations

from mtt.observe import metrics
from mtt.observe.metrics import Counters, Histogram, Snapshot, labels, metric
from mtt.observe.sums import Page, total
from mtt.version import __version__
from tests.support.metrics import parse, short


def page(started: float, number: int, lag: float) -> str:
    counters = Counters()
    counters.started = started
    counters.tunnels = number
    histogram = Histogram((0.1, 1.0))
    histogram.add(lag)
    now = Snapshot(*[number] * len(Snapshot._fields))
    return (
        metrics.page(counters, now)
        + histogram.lines("mtt_event_loop_lag_seconds", "Lag.")
        + metric("mtt_event_loop_lag_max_seconds", "gauge", "Most.", lag)
    )


def samples(found: Page) -> dict[str, float]:
    return short(parse(str(found)))


def test_page_round_trip() -> None:
    text = page(5.25, 3, 0.5)
    assert str(Page(text)) == text
    assert str(total([Page(text)])) == text


def test_lines_end_only_at_line_feeds() -> None:
    """Labels may be paths of files, with any character."""
    values = {labels(path=f"a{sign}b"): 1 for sign in "\r\v\x1c\x85\u2028"}
    text = metric("x", "gauge", "X.", values)
    assert str(Page(text)) == text


def test_pages_are_added_up() -> None:
    found = samples(total([Page(page(7.5, 1, 0.05)), Page(page(5.5, 2, 0.5))]))
    assert found["tunnels"] == found["tunnels_opened_total"] == 3
    assert found['transferred_bytes_total{direction="up"}'] == 3
    assert found["start_time_seconds"] == found["process_start_time_seconds"] == 5.5
    assert found[f'info{{version="{__version__}"}}'] == 1
    assert found["event_loop_lag_max_seconds"] == 0.5
    assert found['event_loop_lag_seconds_bucket{le="0.1"}'] == 1
    assert found['event_loop_lag_seconds_bucket{le="+Inf"}'] == 2
    assert found["event_loop_lag_seconds_sum"] == 0.55


def test_counters_of_ended_workers_are_kept() -> None:
    past = Page(page(5.5, 2, 0.5)).lasting()
    found = samples(total([past, Page(page(7.5, 1, 0.05))]))
    assert (found["tunnels"], found["tunnels_opened_total"]) == (1, 3)
    assert found["start_time_seconds"] == 5.5
    assert found["event_loop_lag_max_seconds"] == 0.05
    assert found["event_loop_lag_seconds_count"] == 2
    assert str(total([Page()])) == ""


def test_counters_never_decrease() -> None:
    """However many processes come and go: what is a sum by now is kept like a single page."""
    past, seen = Page(), 0.0
    for number in (3, 1, 2):
        now = Page(page(5.5, number, 0.5))
        found = samples(total([past, now]))
        assert found["tunnels_opened_total"] > seen
        assert found["tunnels"] == number
        seen = found["tunnels_opened_total"]
        past = total([past, now]).lasting()
        assert samples(past)["tunnels_opened_total"] == seen
        assert samples(past)["tunnels"] == 0
    assert seen == 6
    assert samples(past)["event_loop_lag_seconds_count"] == 3
    assert samples(past)["event_loop_lag_seconds_sum"] == 1.5


def test_large_numbers_are_exact() -> None:
    large = metric("mtt_large", "counter", "Large.", 2**60)
    assert str(total([Page(large), Page(large)])) == large.replace(str(2**60), str(2**61))
    for text in ("1e+16", "0.5", "12"):
        line = f"# HELP a B.\n# TYPE a counter\na {text}\n"
        assert str(total([Page(line)])) == line


def test_maximum_lag_is_kept_until_scraped() -> None:
    later = Page(page(5.5, 2, 0.05))
    later.keep_most(Page(page(5.5, 1, 0.5)))
    assert samples(later)["event_loop_lag_max_seconds"] == 0.5
    later.keep_most(Page())
    assert samples(later)["event_loop_lag_max_seconds"] == 0.5
    later.keep_most(Page(page(5.5, 1, 0.25)))
    assert samples(later)["event_loop_lag_max_seconds"] == 0.5


def test_a_label_for_all_but_the_process() -> None:
    found = samples(Page(page(5.25, 3, 0.5)).labelled('tunnel="a"'))
    assert found['tunnels{tunnel="a"}'] == 3
    assert found['transferred_bytes_total{tunnel="a",direction="up"}'] == 3
    assert found["start_time_seconds"] == 5.25
    assert found[f'info{{version="{__version__}"}}'] == 1
    assert "tunnels" not in found
