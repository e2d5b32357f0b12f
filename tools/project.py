"""The project's names, version, release date and files, for the tools that build packages.

All of it comes from setup.cfg, mtt/version.py and CHANGELOG.md.
"""

from __future__ import annotations

import configparser
import datetime
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mtt.errors import MttError, describe
from mtt.version import __version__

TOP = Path(__file__).resolve().parent.parent

UNRELEASED = "Unreleased"
_HEADING = re.compile(r"^## (\S+)(?: \((\d{4}-\d\d-\d\d)\))?$", re.M)
# Files that running and testing leave in the source directories.
_LEFTOVERS = ("__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache")


class ProjectError(MttError):
    """The project's files are not ready for a package (exit code 1)."""


class Section(NamedTuple):
    """A section of CHANGELOG.md."""

    version: str  # or UNRELEASED
    date: datetime.date | None
    text: str


class Project(NamedTuple):
    """The parts of setup.cfg that packages need."""

    name: str
    summary: str
    url: str
    maintainer: str  # name <address>
    packages: tuple[str, ...]  # top-level directories
    modules: tuple[str, ...]  # top-level files, without .py
    commands: dict[str, tuple[str, str]]  # name: module, function


def read_project(top: Path = TOP) -> Project:
    setup = configparser.ConfigParser()
    setup.read(top / "setup.cfg", encoding="utf-8")
    metadata, options = setup["metadata"], setup["options"]
    found = setup["options.packages.find"]["include"].split()
    scripts = setup["options.entry_points"]["console_scripts"].strip().splitlines()
    commands = {}
    for name, _, entry in (line.partition("=") for line in scripts):
        module, _, function = entry.strip().partition(":")
        commands[name.strip()] = (module, function)
    return Project(
        name=metadata["name"],
        summary=metadata["description"],
        url=metadata["url"],
        maintainer=f"{metadata['author']} <{metadata['author_email']}>",
        packages=tuple(name for name in found if "." not in name),
        modules=tuple(options["py_modules"].split()),
        commands=commands,
    )


def read_changes(top: Path = TOP) -> list[Section]:
    """The sections of CHANGELOG.md, the newest first."""
    text = (top / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = list(_HEADING.finditer(text))
    ends = [heading.start() for heading in headings[1:]] + [len(text)]
    return [
        Section(
            heading[1],
            datetime.date.fromisoformat(heading[2]) if heading[2] else None,
            text[heading.end() : end].strip(),
        )
        for heading, end in zip(headings, ends, strict=True)
    ]


def release_date(changes: list[Section], version: str = __version__) -> datetime.date:
    """The date of `version` in CHANGELOG.md. Raises ProjectError."""
    for section in changes:
        if section.version == version:
            if section.date is None:
                raise ProjectError(
                    f"CHANGELOG.md: section {version} has no date; write ## {version} (YYYY-MM-DD)"
                )
            return section.date
    raise ProjectError(f"CHANGELOG.md: no section {version}; add ## {version} (YYYY-MM-DD)")


def source_date(top: Path = TOP) -> int:
    """The time of all files in a package, in seconds since 1970.

    It is SOURCE_DATE_EPOCH (reproducible-builds.org), or the date of the version in CHANGELOG.md.
    """
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        if not re.fullmatch(r"\d{1,11}", given, re.ASCII):
            raise ProjectError(f"SOURCE_DATE_EPOCH: {given!r} is not a number of seconds")
        return int(given)
    return midnight(release_date(read_changes(top)))


def midnight(date: datetime.date) -> int:
    """The start of `date` in UTC, in seconds since 1970."""
    return int(datetime.datetime.combine(date, datetime.time(), datetime.UTC).timestamp())


def files_below(directory: Path) -> Iterator[Path]:
    """The files of a source directory, sorted, without what running and testing leave behind."""
    for path in sorted(directory.rglob("*")):
        parts = path.relative_to(directory).parts
        if path.is_file() and not any(part in _LEFTOVERS for part in parts):
            yield path


def run(command: list[str], **options: Any) -> str:
    """Run a command; returns what it printed. Raises ProjectError with that if it fails."""
    done: subprocess.CompletedProcess[str] = subprocess.run(
        command, capture_output=True, text=True, check=False, **options
    )
    if done.returncode:
        output = (done.stdout + done.stderr).strip()
        raise ProjectError(f"{command[0]} failed (exit code {done.returncode}):\n{output}")
    return done.stdout


def run_tool(name: str, build: Callable[[Path], Iterable[Path]]) -> int:
    """The main function of a tool with one argument, the directory to build in (default dist).

    It prints the paths of what was built. Returns an exit code.
    """
    try:
        for path in build(Path(sys.argv[1] if sys.argv[1:] else "dist")):
            print(path)
    except (MttError, OSError) as error:
        text = str(error) if isinstance(error, MttError) else describe(error)
        print(f"{name}: {text}", file=sys.stderr)
        return 1
    return 0
