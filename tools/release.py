"""Makes a release of the version in mtt/version.py: `python -m tools.release`, `make release`.

It checks CHANGELOG.md and the working tree, builds the Debian package, the source distribution and
the wheel of the current commit in dist, with their checksums, and makes the annotated tag vVERSION.
It publishes nothing.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import sys
import tempfile
from pathlib import Path

from mtt.version import __version__
from tools.project import (
    TOP,
    UNRELEASED,
    ProjectError,
    Section,
    read_changes,
    read_project,
    release_date,
    run,
    run_tool,
    source_date,
)

SUMS = "SHA256SUMS"


def git(*arguments: str) -> str:
    return run(["git", "-C", str(TOP), *arguments]).strip()


def check_changes(changes: list[Section], today: datetime.date) -> Section:
    """The section of this version, which must be the newest. Raises ProjectError."""
    if changes and changes[0].version == UNRELEASED:
        if changes[0].text:
            raise ProjectError(
                f"CHANGELOG.md: section {UNRELEASED} has entries; move them to {__version__}"
            )
        changes = changes[1:]
    date = release_date(changes)
    if changes[0].version != __version__:
        raise ProjectError(
            f"CHANGELOG.md: the newest section is {changes[0].version}, but mtt/version.py has "
            f"{__version__}; change one of them"
        )
    if date > today:
        raise ProjectError(f"CHANGELOG.md: the date of {__version__}, {date}, is in the future")
    if not changes[0].text:
        raise ProjectError(f"CHANGELOG.md: section {__version__} is empty; write what has changed")
    return changes[0]


def check_tree(tag: str) -> None:
    """Check that the working tree is clean and the tag is new. Raises ProjectError."""
    if changed := run(["git", "-C", str(TOP), "status", "--porcelain", "-z"]):
        names = ", ".join(entry[3:] for entry in changed.split("\0")[:5] if entry)
        raise ProjectError(f"the working tree is not clean; commit or remove the changes: {names}")
    if git("tag", "--list", tag):
        raise ProjectError(f"tag {tag} exists; raise the version in mtt/version.py")


def build_commit(directory: Path) -> list[Path]:
    """Build everything from the files of the current commit, and from no others."""
    environment = os.environ | {"SOURCE_DATE_EPOCH": str(source_date())}
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary) / "source"
        source.mkdir()
        git("archive", f"--output={source}.tar", "HEAD")
        run(["tar", "-xf", f"{source}.tar", "-C", str(source)])
        printed = [
            run([sys.executable, "-m", f"tools.{tool}", str(directory)], cwd=source,
                env=environment)
            for tool in ("deb", "dist")
        ]  # fmt: skip
    return [Path(line) for lines in printed for line in lines.splitlines()]


def release(directory: Path) -> list[Path]:
    """Check, build and tag; returns the paths of what was built. Raises ProjectError."""
    tag = f"v{__version__}"
    section = check_changes(read_changes(), datetime.datetime.now(datetime.UTC).date())
    check_tree(tag)
    project = read_project()
    if ".example/" in project.url:
        print(
            f"release: warning: setup.cfg: url, {project.url}, is a placeholder; set it to the "
            "repository before you publish, because the package index links to it",
            file=sys.stderr,
        )
    built = build_commit(directory.resolve())
    sums = directory / SUMS
    sums.write_text("".join(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in built
    ))  # fmt: skip
    # Git would remove headings (### ...) as comments.
    message = f"{project.name} {__version__}\n\n{section.text}\n"
    git("tag", "--annotate", "--cleanup=verbatim", tag, "--message", message)
    print(f"release: tagged {git('rev-parse', '--short', 'HEAD')} as {tag}", file=sys.stderr)
    return [*built, sums]


if __name__ == "__main__":
    sys.exit(run_tool("release", release))
