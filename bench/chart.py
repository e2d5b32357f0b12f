"""The results as a picture for docs/performance.md, drawn by matplotlib where it is installed."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.peers import HAPROXY, STUNNEL, V2RAY, V2RAY_MUX
from bench.processes import TOP
from bench.results import Run
from bench.rows import Row

PATH = TOP / "bench" / "chart.svg"


class Panel(NamedTuple):
    row: str
    column: str
    against: str  # the peer that is 1: figures of one machine mean nothing elsewhere
    title: str


PANELS = (
    Panel("bulk", "worst", STUNNEL, "Throughput of one connection"),
    Panel("bulk", "up_server", STUNNEL, "CPU per byte, server (less is better)"),
    Panel("requests", "rate32", V2RAY, "Requests per second, 32 connections"),
    Panel("conns", "rate", V2RAY, "New connections per second"),
)

# Subjects shown, top down: ours first; "direct" would dwarf all others.
_PEERS = (HAPROXY, STUNNEL, V2RAY, V2RAY_MUX, "peer")
_OURS_COLOUR, _PEER_COLOUR = "#2a6fb0", "#b8bec6"


def draw(rows: Sequence[Row], run: Run, ours: set[str], path: Path = PATH) -> bool:
    """Draw the panels that have results; False if there are none or matplotlib is missing."""
    panels = [(panel, bars) for panel in PANELS if (bars := _bars(rows, run, panel, ours))]
    try:
        # By name: type checkers run with and without the package.
        matplotlib: Any = importlib.import_module("matplotlib")
        matplotlib.use("svg")
        pyplot: Any = importlib.import_module("matplotlib.pyplot")
    except ImportError:
        return False
    if not panels:
        return False
    # The same results must give the same file.
    matplotlib.rcParams["svg.hashsalt"] = "bench"
    height = sum(0.28 * len(bars) + 0.7 for _, bars in panels)
    figure, axes = pyplot.subplots(
        len(panels), 1, figsize=(7.5, height), squeeze=False, layout="constrained",
        height_ratios=[len(bars) + 1 for _, bars in panels],
    )  # fmt: skip
    for axis, (panel, bars) in zip(axes[:, 0], panels, strict=True):
        names, values = zip(*bars, strict=True)
        colours = [_OURS_COLOUR if name in ours else _PEER_COLOUR for name in names]
        drawn = axis.barh(names, values, color=colours)
        axis.bar_label(drawn, fmt="%.2f", padding=3, fontsize=8)
        axis.invert_yaxis()
        axis.axvline(1, color="#888888", linewidth=0.8, linestyle=":")
        axis.set_title(f"{panel.title}, {panel.against} = 1", loc="left", fontsize=10)
        axis.tick_params(axis="y", labelsize=8, length=0)
        axis.xaxis.set_visible(False)
        axis.margins(x=0.12)
        for side in ("top", "right", "bottom"):
            axis.spines[side].set_visible(False)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return True


def _bars(
    rows: Sequence[Row], run: Run, panel: Panel, ours: set[str]
) -> list[tuple[str, float]]:
    row = next((row for row in rows if row.name == panel.row), None)
    if row is None:
        return []
    names = [cell.name for cell in row.cells if cell.name in ours]
    bars = []
    for name in (*names, *_PEERS):
        ratio = run.ratio(row.name, name, panel.column, panel.against)
        if ratio is not None:
            bars.append((name, ratio))
    return bars
