"""Sums of the metrics pages of several processes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from io import StringIO

Combine = Callable[[float, float], float]

_MAX_LAG = "mtt_event_loop_lag_max_seconds"
_EXPIRY = "mtt_certificate_not_after_timestamp_seconds"
# Metrics that are not summed, and what is reported of two values.
_COMBINED: dict[str, Combine] = {
    "mtt_build_info": lambda one, _: one,
    "mtt_info": lambda one, _: one,
    "process_start_time_seconds": min,
    "mtt_start_time_seconds": min,
    _EXPIRY: min,
    _MAX_LAG: max,
}
# Metrics that concern the process, not one of its tunnels.
_OF_PROCESS = ("mtt_info", "mtt_start_time_seconds", "process_start_time_seconds")
# Kinds and names of what is kept of a process that is gone; the rest describes the current state.
_LASTING = (
    "counter", "histogram", "mtt_build_info", "mtt_info", "process_start_time_seconds",
    "mtt_start_time_seconds",
)  # fmt: skip


class Page:
    """The samples of a page of `mtt.observe.metrics`; other pages can be added."""

    def __init__(self, text: str = "") -> None:
        self._headers: dict[str, str] = {}  # by the metric's name, in the order of the page
        self._samples: dict[str, dict[str, float]] = {}  # by name, then by name with labels
        name = ""
        for line in StringIO(text):  # splitlines() also splits at other characters in labels
            if line.startswith("# HELP "):
                name = line.split(" ", 3)[2]
                self._headers[name] = line
                self._samples[name] = {}
            elif line.startswith("# TYPE "):
                self._headers[name] += line
            else:
                key, _, value = line.rpartition(" ")
                self._samples[name][key] = _number(value)

    def add(self, other: Page) -> None:
        """Add the page of another process."""
        for name, header in other._headers.items():
            self._headers.setdefault(name, header)
            ours = self._samples.setdefault(name, {})
            combine: Combine = _COMBINED.get(name, operator.add)
            for key, value in other._samples[name].items():
                ours[key] = combine(ours[key], value) if key in ours else value

    def labelled(self, label: str) -> Page:
        """The same with a label, as by `metrics.labels()`, except on what concerns the process."""
        page = Page()
        page._headers = dict(self._headers)
        for name, samples in self._samples.items():
            page._samples[name] = {
                key if name in _OF_PROCESS else _with_label(key, label): value
                for key, value in samples.items()
            }
        return page

    def lasting(self) -> Page:
        """The part kept when the process is gone, so that no counter decreases."""
        page = Page()
        page._headers = dict(self._headers)
        for name, samples in self._samples.items():
            if name == _EXPIRY:  # 0 would be the least
                page._samples[name] = {}
                continue
            kind = self._headers[name].split()[-1]
            lasts = kind in _LASTING or name in _LASTING
            page._samples[name] = dict(samples) if lasts else dict.fromkeys(samples, 0)
        return page

    def keep_most(self, earlier: Page) -> None:
        """Take over the maxima of an `earlier` page of the same process."""
        ours = self._samples.get(_MAX_LAG, {})
        for key, value in earlier._samples.get(_MAX_LAG, {}).items():
            ours[key] = max(value, ours.get(key, 0.0))

    def __str__(self) -> str:
        return "".join(
            header + "".join(f"{key} {value}\n" for key, value in self._samples[name].items())
            for name, header in self._headers.items()
        )


def total(pages: Iterable[Page]) -> Page:
    """The sum of all pages."""
    found = Page()
    for page in pages:
        found.add(page)
    return found


def _with_label(key: str, label: str) -> str:
    name, brace, rest = key.partition("{")
    return f"{name}{{{label},{rest}" if brace else f"{name}{{{label}}}"


def _number(text: str) -> float:
    return float(text) if "." in text or "e" in text else int(text)
