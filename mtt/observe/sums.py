"""Sums of the metrics pages of several processes."""

from __future__ import annotations

from collections.abc import Iterable

# Metrics that are not summed: the version, the first start time, and the maximum lag.
_FIRST = "mtt_info"
_LEAST = "mtt_start_time_seconds"
_MOST = "mtt_event_loop_lag_max_seconds"

# Metrics kept of a process that is gone; all others describe the current state.
_LASTING = ("counter", "histogram")


class Page:
    """The samples of a page of `mtt.observe.metrics`; other pages can be added."""

    def __init__(self, text: str = "") -> None:
        self._headers: dict[str, str] = {}  # by the metric's name, in the order of the page
        self._samples: dict[str, dict[str, float]] = {}  # by name, then by name with labels
        name = ""
        for line in text.splitlines(keepends=True):
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
            for key, value in other._samples[name].items():
                ours[key] = _together(name, ours[key], value) if key in ours else value

    def lasting(self) -> Page:
        """The part kept when the process is gone, so that no counter decreases."""
        page = Page()
        page._headers = dict(self._headers)
        for name, samples in self._samples.items():
            kind = self._headers[name].split()[-1]
            lasts = kind in _LASTING or name in (_FIRST, _LEAST)
            page._samples[name] = dict(samples) if lasts else dict.fromkeys(samples, 0)
        return page

    def keep_most(self, earlier: Page) -> None:
        """Take over the maxima of an `earlier` page of the same process."""
        ours = self._samples.get(_MOST, {})
        for key, value in earlier._samples.get(_MOST, {}).items():
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


def _together(name: str, one: float, other: float) -> float:
    if name == _FIRST:
        return one
    if name == _LEAST:
        return min(one, other)
    if name == _MOST:
        return max(one, other)
    return one + other


def _number(text: str) -> float:
    return float(text) if "." in text or "e" in text else int(text)
