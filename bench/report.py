"""The results as Markdown tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.results import Run
from bench.rows import Row
from bench.targets import TARGETS, met, value

Notes = Mapping[str, Mapping[str, str]]  # row -> cell -> why there is no result

NOTHING = "-"


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table that is also readable as it is: first column left, the others right."""
    widths = [max(len(line[at]) for line in (header, *lines)) for at in range(len(header))]

    def text(line: Sequence[str]) -> str:
        cells = [
            cell.rjust(width) if at else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        return f"| {' | '.join(cells)} |"

    rule = [
        "-" * (width + 1) + (":" if at else "-") for at, width in enumerate(widths)
    ]
    return "\n".join((text(header), f"|{'|'.join(rule)}|", *map(text, lines)))


def row_table(row: Row, run: Run) -> str:
    """Medians of one row, and its ratios to those cells that have been measured."""
    names = [cell.name for cell in row.cells if run.samples(row.name, cell.name)]
    ratios = [
        (ratio.column, other)
        for ratio in row.ratios
        for other in ratio.against
        if run.median(row.name, other, ratio.column) is not None
    ]
    headings = {column.key: column.heading for column in row.columns}
    several = len(row.ratios) > 1
    columns = [  # those that some cell has
        column
        for column in row.columns
        if any(run.median(row.name, name, column.key) is not None for name in names)
    ]
    header = ["", *(column.heading for column in columns)]
    for column, other in ratios:
        header.append(f"{headings[column]} x {other}" if several else f"x {other}")
    lines = [
        [
            name,
            *(_number(run.median(row.name, name, key), form) for key, _, form in columns),
            *(_number(run.ratio(row.name, name, column, other)) for column, other in ratios),
        ]
        for name in names
    ]
    return table(header, lines)


def targets_table(run: Run) -> str:
    """The targets that were measured."""
    lines = []
    for target in TARGETS:
        measured = value(target, run)
        if measured is not None:
            lines.append(
                (
                    target.text + (f" / {target.against}" if target.against else ""),
                    f"{'<=' if target.at_most else '>='} {target.limit:g}",
                    _number(measured),
                    "yes" if met(target, measured) else "NO",
                )
            )
    return table(("", "target", "measured", "met"), lines) if lines else ""


def report(rows: Sequence[Row], run: Run, about: Mapping[str, Any], notes: Notes) -> str:
    """Everything, with what it was measured on and what could not be."""
    machine = about["machine"]
    parts = [
        f"Commit {about['commit']}; {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['system']}, {machine['python']}, {machine['openssl']}. "
        f"Medians of {about['rounds']}; ratios are taken within a round."
    ]
    for row in rows:
        measured = any(run.samples(row.name, cell.name) for cell in row.cells)
        parts.append(f"### {row.name}\n\n{row.title}")
        if measured:
            parts.append(row_table(row, run))
    if targets := targets_table(run):
        parts.append(f"### targets\n\n{targets}")
    if missing := _grouped(notes):
        parts.append("### not measured\n\n" + "\n".join(f"- {line}" for line in missing))
    return "\n\n".join(parts)


def _grouped(notes: Notes) -> list[str]:
    """One line per reason, with the cells and rows it is given for."""
    reasons: dict[str, tuple[dict[str, None], dict[str, None]]] = {}  # dicts as ordered sets
    for row, cells in notes.items():
        for cell, reason in cells.items():
            names, rows = reasons.setdefault(reason, ({}, {}))
            names[cell] = rows[row] = None
    return [
        f"{', '.join(names)} ({', '.join(rows)}): {reason}"
        for reason, (names, rows) in reasons.items()
    ]


def _number(number: float | None, form: str = ".2f") -> str:
    return NOTHING if number is None else format(number, form)
