"""bench/results.json: what has been measured, of which commit and on which machine.

A run that was stopped goes on where it was; samples of the same commit on the same machine are
not taken again. The commit is the last that changed what is measured or how, so that a word in
the README invalidates nothing; a working tree with changes is told apart by their digest.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import platform
import ssl
import statistics
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.loads import Sample
from bench.processes import TOP

PATH = TOP / "bench" / "results.json"

# What a result depends on, as git pathspecs.
MEASURED = ("mtt", "plugin", "mtt_client.py", "mtt_server.py", "bench/*.py")

# Runs in the file; older ones are dropped.
KEEP_RUNS = 8


class Run:
    """The samples of one commit on one machine: row -> cell -> one sample per round.

    Args:
        data: as in the file.
    """

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data
        self.cells: dict[str, dict[str, list[Sample]]] = data.setdefault("cells", {})

    def samples(self, row: str, cell: str) -> list[Sample]:
        return self.cells.get(row, {}).get(cell, [])

    def add(self, row: str, cell: str, sample: Sample) -> None:
        """Keep a sample, to four digits: more is noise, and makes the file unreadable."""
        rounded = {key: float(f"{value:.4g}") for key, value in sample.items()}
        self.cells.setdefault(row, {}).setdefault(cell, []).append(rounded)

    def median(self, row: str, cell: str, column: str) -> float | None:
        """The median over the rounds, None if it was not measured."""
        values = [sample[column] for sample in self.samples(row, cell) if column in sample]
        return statistics.median(values) if values else None

    def ratio(self, row: str, cell: str, column: str, against: str) -> float | None:
        """The median of the ratios of each round, in which both had the same conditions."""
        ratios = [
            ours[column] / theirs[column]
            for ours, theirs in zip(
                self.samples(row, cell), self.samples(row, against), strict=False
            )
            if column in ours and theirs.get(column)
        ]
        return statistics.median(ratios) if ratios else None


class Store:
    """The file. `key` names the run of this commit and machine."""

    def __init__(self, path: Path, key: str, about: Mapping[str, Any], *, fresh: bool) -> None:
        self._path = path
        self._runs: dict[str, Any] = {}
        # A damaged or foreign file is replaced.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            self._runs = dict(json.loads(path.read_text())["runs"])
        data = {} if fresh else self._runs.pop(key, {})
        self._runs.pop(key, None)
        self.run = Run(data)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        data.update(about, started=data.get("started", now))
        self._runs[key] = data  # the newest is the last

    def save(self) -> None:
        """Write the file, all or nothing."""
        self._runs = dict(list(self._runs.items())[-KEEP_RUNS:])
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(json.dumps({"runs": self._runs}, indent=1) + "\n")
        os.replace(temporary, self._path)


def commit() -> str:
    """The last commit that changed what is measured, with a digest of changes since."""
    head = _git("log", "-1", "--format=%h", "--", *MEASURED).decode().strip() or "no commit"
    names = _git("ls-files", "-z", "-m", "-d", "-o", "--exclude-standard", "--", *MEASURED)
    names += _git("diff", "--cached", "--name-only", "-z", "--", *MEASURED)
    if not names:
        return head
    digest = hashlib.sha256()
    for name in sorted(set(filter(None, names.split(b"\0")))):
        digest.update(name)
        with contextlib.suppress(OSError):
            digest.update((TOP / os.fsdecode(name)).read_bytes())
    return f"{head} + changes {digest.hexdigest()[:8]}"


def machine() -> dict[str, Any]:
    """What results of one machine cannot be compared without."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "openssl": ssl.OPENSSL_VERSION.rpartition("  ")[0] or ssl.OPENSSL_VERSION,
    }


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _git(*arguments: str) -> bytes:
    with contextlib.suppress(OSError):
        done = subprocess.run(
            ["git", *arguments], cwd=TOP, capture_output=True, timeout=20, check=False
        )
        return done.stdout if not done.returncode else b""
    return b""
