"""The bench: our tunnel and others like it, on this machine, in one run. Linux only.

    python -m bench                    everything, in some ten minutes
    python -m bench --quick            one short round of the essentials, below a minute
    python -m bench bulk conns         these rows only: bulk requests conns first memory
                                       startup udp layers gateway agents controller
    python -m bench --subjects tls,stunnel    these subjects only
    python -m bench --fresh            forget earlier results of this commit on this machine

Progress goes to stderr, the tables to stdout, every sample to bench/results.json as soon as it
is there. A run that was stopped goes on where it was. bench/chart.svg is drawn when matplotlib is
installed and the run is not a quick one. What is not installed is left out, with a note; see
bench/peers.py for peers, and for adding one by PEER_CLIENT and PEER_SERVER.

Which figures to trust
----------------------
* Ratios within one run. Absolute figures drift by 10 to 20 % on an ordinary machine, and all
  programs of a chain, load generator included, share its cores.
* CPU per GB and per connection more than throughput: another program's load takes time from us,
  but adds little to our own CPU time.
* Round trips, memory and start-up vary little, and one round says as much as three.
* Not comparable with other machines: anything but ratios. Without encryption by hardware even
  those differ.
* p99 with 32 connections is what a saturated machine does with its queue.
* `conns` gives every request a connection of its own. Our client resumes TLS sessions, as it
  always does; the bare handshake to compare with is a full one, and the resumed one is listed
  with it. The rate under ab says most about how soon the end of a connection is passed on.
* Quick runs say that everything works, and whether something is off by half.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any, NoReturn

from bench.loads import FULL, QUICK, Effort
from bench.peers import NAMES, STUNNEL, V2RAY, V2RAY_MUX
from bench.processes import BenchError
from bench.results import PATH, Store, commit, machine
from bench.rows import Bench, Cell, Row, all_subjects
from bench.subjects import Subject
from mtt.modes import MODES

# A quick run: our modes on the default loop, and one peer for each.
ORIGINAL = [mode.name for mode in MODES.values() if mode.is_original]
QUICK_SUBJECTS = (*ORIGINAL, STUNNEL, V2RAY, V2RAY_MUX)

# Load average of the last minute, above which others take a noticeable share of the cores.
BUSY = 0.5

ROWS = ("bulk", "requests", "conns", "first", "memory", "startup", "udp", "layers", "gateway",
        "agents", "controller")  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    if sys.platform != "linux":
        print("bench: measures through /proc, which only Linux has", file=sys.stderr)
        return 2
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    _allow_many_files()
    if (load := os.getloadavg()[0]) > BUSY:
        progress(f"bench: the machine is busy (load {load:.1f}): do not trust these figures")
    from bench.chart import draw  # late: they are of no use to --help
    from bench.report import report

    effort = QUICK if arguments.quick else FULL
    known = all_subjects()
    chosen = select_subjects(known, arguments.subjects, quick=arguments.quick)
    about = {"commit": commit(), "machine": machine(), "rounds": effort.rounds}
    store = Store(PATH, run_key(about, quick=arguments.quick), about, fresh=arguments.fresh)
    with Bench(effort, chosen) as bench:
        rows = [row for row in bench.rows() if row.name in (arguments.rows or ROWS)]
        notes, failed = measure(rows, effort, store)
    print(report(rows, store.run, about, notes))
    ours = {subject.name for subject in known if subject.ours}
    if not arguments.quick and draw(rows, store.run, ours):
        progress("drew bench/chart.svg")
    return 1 if failed else 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Measure the tunnel and its peers on this machine."
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"one of: {', '.join(ROWS)}")
    parser.add_argument("--quick", action="store_true", help="one short round, below a minute")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured")
    parser.add_argument("--subjects", default="", help="names, separated by commas")
    arguments = parser.parse_args(argv)
    for name in arguments.rows:
        if name not in ROWS:
            parser.error(f"there is no row {name!r}; choose from {', '.join(ROWS)}")
    return arguments


def select_subjects(known: Sequence[Subject], names: str, *, quick: bool) -> list[Subject]:
    """The subjects to measure. Exits with a message at a name that is none."""
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if unknown := set(wanted) - {subject.name for subject in known}:
        everything = ", ".join(subject.name for subject in known)
        sys.exit(f"bench: --subjects: unknown: {', '.join(unknown)}; there are {everything}")
    if not wanted:
        wanted = list(QUICK_SUBJECTS if quick else (subject.name for subject in known))
    return [subject for subject in known if subject.name in wanted]


def run_key(about: dict[str, Any], *, quick: bool) -> str:
    """What samples must agree in to belong together."""
    return "; ".join(
        (about["commit"], *map(str, about["machine"].values()), "quick" if quick else "full")
    )


def measure(
    rows: Sequence[Row], effort: Effort, store: Store
) -> tuple[dict[str, dict[str, str]], bool]:
    """Take all samples that are missing. Returns notes on what there is no result of.

    The second value says whether something failed that should have worked.
    """
    notes: dict[str, dict[str, str]] = {}
    todo: list[tuple[Row, Cell]] = []
    for row in rows:
        for number in range(effort.rounds):
            for cell in row.cells:
                if cell.missing:
                    notes.setdefault(row.name, {})[cell.name] = cell.missing
                elif len(store.run.samples(row.name, cell.name)) <= number:
                    todo.append((row, cell))
    if not todo:
        progress("bench: all samples are there already; --fresh takes them again")
    failed = False
    start = time.monotonic()
    for done, (row, cell) in enumerate(todo):
        if cell.name in notes.get(row.name, {}):
            continue  # what failed in one round is not tried in the next
        progress(f"[{done + 1}/{len(todo)}] {row.name}: {cell.name}{remaining(start, done, todo)}")
        try:
            sample = cell.measure()
        except BenchError as error:
            notes.setdefault(row.name, {})[cell.name] = str(error)
            progress(f"    failed: {error}")
            failed |= cell.name not in NAMES  # a peer's failure is not ours
            continue
        store.run.add(row.name, cell.name, sample)
        store.save()
        progress("    " + ", ".join(f"{key} {value:.4g}" for key, value in sample.items()))
    return notes, failed


def remaining(start: float, done: int, todo: Sequence[object]) -> str:
    """How long the rest will take, as far as one can say."""
    if done < 5:
        return ""
    seconds = (time.monotonic() - start) / done * (len(todo) - done)
    return f" (about {seconds // 60:.0f}:{seconds % 60:02.0f} left)"


def progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _stop(number: int, _frame: FrameType | None) -> NoReturn:
    # An impatient second Ctrl-C must not stop the ending of the programs.
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    progress("bench: stopped; the same command without --fresh goes on from here")
    sys.exit(128 + number)


def _allow_many_files() -> None:
    """Raise the limit of open files to what is allowed; the programs inherit it."""
    import resource  # Unix only

    with contextlib.suppress(OSError, ValueError):
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(main())
