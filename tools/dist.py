"""Builds the source distribution and the wheel: `python -m tools.dist [DIRECTORY]`, `make dist`.

The build is reproducible; see `source_date`. It needs setuptools 70.1 or newer.
"""

from __future__ import annotations

import gzip
import importlib.util
import io
import os
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

from tools.project import TOP, ProjectError, run, run_tool, source_date

# The build backend builds the source in its working directory.
_BACKEND = "import sys, setuptools.build_meta as backend; backend.build_{}(sys.argv[1])"
# Files that git ignores, and git's own. Old build/ and *.egg-info would add removed files.
_NOT_SOURCE = (
    ".git", ".venv*", "build", "dist", "*.egg-info", "__pycache__", "*.pyc", ".*_cache",
)  # fmt: skip


def build(directory: Path) -> list[Path]:
    """Build both in `directory`; returns their paths. Raises ProjectError."""
    if importlib.util.find_spec("setuptools") is None:
        raise ProjectError(f"{sys.executable} has no setuptools; use `make dist`")
    seconds = source_date()
    directory.mkdir(parents=True, exist_ok=True)
    directory = directory.resolve()
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / "copy"
        shutil.copytree(TOP, copy, ignore=shutil.ignore_patterns(*_NOT_SOURCE), symlinks=True)
        made = _run_backend("sdist", copy, Path(temporary) / "sdist", seconds)
        sdist = directory / made.name
        sdist.write_bytes(repacked(made, seconds))
        # The wheel is built from the source distribution, to verify that that is complete.
        run(["tar", "-xpf", str(sdist), "-C", temporary])
        source = Path(temporary) / sdist.name.removesuffix(".tar.gz")
        wheel = _run_backend("wheel", source, Path(temporary) / "wheel", seconds)
        shutil.copy(wheel, directory / wheel.name)
    return [sdist, directory / wheel.name]


def _run_backend(kind: str, source: Path, target: Path, seconds: int) -> Path:
    target.mkdir()
    run(
        [sys.executable, "-c", _BACKEND.format(kind), str(target)],
        cwd=source, env=os.environ | {"SOURCE_DATE_EPOCH": str(seconds)}, umask=0o022,
    )  # fmt: skip
    (made,) = target.iterdir()
    return made


def repacked(path: Path, seconds: int) -> bytes:
    """The archive sorted by name, with fixed times, owners and modes."""
    raw = io.BytesIO()
    with tarfile.open(path) as old, tarfile.open(
        fileobj=raw, mode="w", format=tarfile.PAX_FORMAT
    ) as new:  # fmt: skip
        for member in sorted(old.getmembers(), key=lambda member: member.name):
            data = old.extractfile(member) if member.isfile() else None
            member.mtime = seconds
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            member.pax_headers = {}
            new.addfile(member, data)
    return gzip.compress(raw.getvalue(), 9, mtime=0)


if __name__ == "__main__":
    sys.exit(run_tool("dist", build))
