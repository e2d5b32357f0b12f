"""`make release`, in a clone of this repository."""

from __future__ import annotations

import datetime
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mtt.version import __version__
from tests.packaging.test_dist import require_setuptools
from tests.support.programs import require_program
from tools.project import TOP, ProjectError, Section, read_changes, release_date
from tools.release import check_changes

TODAY = datetime.date(2030, 1, 2)
NOW = Section(__version__, TODAY, "- A change.")
OLD = Section("0.0.1", TODAY, "- Another one.")


def test_changes_that_can_be_released() -> None:
    assert check_changes([NOW, OLD], TODAY) == NOW
    assert check_changes([Section("Unreleased", None, ""), NOW, OLD], TODAY) == NOW


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ([Section("Unreleased", None, "- New."), NOW],
         f"section Unreleased has entries; move them to {__version__}"),
        ([], f"no section {__version__}; add ## {__version__} (YYYY-MM-DD)"),
        ([NOW._replace(date=None)], f"section {__version__} has no date; write ## {__version__} ("),
        ([OLD, NOW], f"the newest section is 0.0.1, but mtt/version.py has {__version__}"),
        ([NOW._replace(text="")], f"section {__version__} is empty"),
        ([NOW._replace(date=datetime.date(2030, 1, 3))], "2030-01-03, is in the future"),
    ],
)  # fmt: skip
def test_changes_that_cannot_be_released(changes: list[Section], text: str) -> None:
    with pytest.raises(ProjectError, match=r"^CHANGELOG\.md: ") as raised:
        check_changes(changes, TODAY)
    assert text in str(raised.value)


def test_this_version_has_a_section_with_a_date() -> None:
    changes = read_changes()
    assert release_date(changes) >= datetime.date(2026, 11, 30)
    assert [section.version for section in changes][:2] == ["Unreleased", __version__]


class Clone:
    """A clone of this repository, with what is not committed here."""

    def __init__(self, path: Path) -> None:
        self.path = path
        ignored = shutil.ignore_patterns(".git", ".venv*", "build", "dist", "*.egg-info", "__pyc*",
                                         ".*_cache", "tests", "docs")  # fmt: skip
        shutil.copytree(TOP, path, ignore=ignored)
        (path / "docs").mkdir()
        changes = path / "CHANGELOG.md"
        # As before a release: nothing is unreleased.
        unreleased = re.compile(r"## Unreleased\n.*?(?=^## )", re.M | re.S)
        changes.write_text(unreleased.sub("## Unreleased\n\n", changes.read_text()))
        self.git("init", "--quiet")
        self.commit()

    def git(self, *arguments: str) -> str:
        options = ("-c", "user.name=Test", "-c", "user.email=test@test.example")
        return subprocess.run(
            [require_program("git"), *options, *arguments], cwd=self.path, check=True,
            capture_output=True, text=True,
        ).stdout  # fmt: skip

    def commit(self) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "State")

    def release(self) -> tuple[int, str, str]:
        environment = os.environ | {
            "PYTHONDONTWRITEBYTECODE": "1", "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_COMMITTER_NAME": "Test", "GIT_COMMITTER_EMAIL": "test@test.example",
        }  # fmt: skip
        environment.pop("SOURCE_DATE_EPOCH", None)
        done = subprocess.run(
            [sys.executable, "-m", "tools.release"], cwd=self.path, env=environment,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    require_program("git")
    return Clone(tmp_path / "clone")


@pytest.mark.deadline(60)
def test_release_builds_and_tags(clone: Clone) -> None:
    require_program("dpkg-deb")
    require_setuptools()
    code, printed, errors = clone.release()
    assert code == 0, errors
    deb, sdist, wheel, sums = printed.split()
    assert Path(deb).name == f"mos-tls-tunnel_{__version__}_all.deb"
    assert Path(sdist).name == f"mos_tls_tunnel-{__version__}.tar.gz"
    assert Path(wheel).name == f"mos_tls_tunnel-{__version__}-py3-none-any.whl"
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=clone.path / "dist",
                   check=True)  # fmt: skip
    assert (clone.path / sums).name == "SHA256SUMS"
    tag = clone.git("cat-file", "-p", f"v{__version__}")
    assert f"tag v{__version__}\n" in tag
    section = next(each for each in read_changes() if each.version == __version__)
    assert tag.endswith(f"\n\nmos-tls-tunnel {__version__}\n\n{section.text}\n")
    assert clone.git("rev-parse", f"v{__version__}^{{commit}}") == clone.git("rev-parse", "HEAD")
    assert f"release: tagged {clone.git('rev-parse', '--short', 'HEAD').strip()} as v" in errors
    # Once more: the tag is there, and the tree is as clean as before.
    assert clone.release() == (
        1, "", f"release: tag v{__version__} exists; raise the version in mtt/version.py\n",
    )  # fmt: skip


def test_release_refuses_uncommitted_changes(clone: Clone) -> None:
    (clone.path / "README.md").write_text("x")
    (clone.path / "new file").write_text("x")
    assert clone.release() == (
        1, "", "release: the working tree is not clean; commit or remove the changes: "
        "README.md, new file\n",
    )  # fmt: skip
    assert clone.git("tag") == ""


def test_release_refuses_unreleased_changes(clone: Clone) -> None:
    changes = clone.path / "CHANGELOG.md"
    changes.write_text(changes.read_text().replace("## Unreleased\n", "## Unreleased\n\n- New.\n"))
    clone.commit()
    assert clone.release() == (
        1, "",
        f"release: CHANGELOG.md: section Unreleased has entries; move them to {__version__}\n",
    )  # fmt: skip
    assert clone.git("tag") == ""
