"""The wheel and the source distribution: complete, described, the same each time."""

from __future__ import annotations

import email
import importlib.metadata
import os
import re
import shutil
import subprocess
import tarfile
import zipfile
from email.message import Message
from pathlib import Path

import pytest

from mtt.version import __version__
from tests.support.programs import missing
from tools import dist
from tools.project import TOP, files_below, read_project

PROJECT = read_project()
NAME = f"mos_tls_tunnel-{__version__}"


def require_setuptools() -> None:
    try:
        version = importlib.metadata.version("setuptools")
    except importlib.metadata.PackageNotFoundError:
        version = "0"
    if tuple(map(int, version.split(".")[:2])) < (70, 1):
        missing("setuptools 70.1 or newer is not installed (make dist installs it)")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source distribution and the wheel."""
    require_setuptools()
    sdist, wheel = dist.build(tmp_path_factory.mktemp("dist"))
    return sdist, wheel


@pytest.fixture(scope="module")
def metadata(built: tuple[Path, Path]) -> Message:
    with zipfile.ZipFile(built[1]) as wheel:
        return email.message_from_bytes(wheel.read(f"{NAME}.dist-info/METADATA"))


def test_names(built: tuple[Path, Path]) -> None:
    assert [path.name for path in built] == [f"{NAME}.tar.gz", f"{NAME}-py3-none-any.whl"]


def test_same_source_gives_same_bytes(built: tuple[Path, Path], tmp_path: Path) -> None:
    umask = os.umask(0o077)
    try:
        again = dist.build(tmp_path)
    finally:
        os.umask(umask)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in built]


def test_wheel_has_all_modules_and_nothing_else(built: tuple[Path, Path]) -> None:
    expected = {f"{name}.py" for name in PROJECT.modules}
    for name in PROJECT.packages:
        expected |= {path.relative_to(TOP).as_posix() for path in files_below(TOP / name)}
        assert f"{name}/py.typed" in expected
    with zipfile.ZipFile(built[1]) as wheel:
        names = {name for name in wheel.namelist() if not name.startswith(f"{NAME}.dist-info/")}
    assert names == expected


def test_source_distribution_has_all_files_of_the_repository(built: tuple[Path, Path]) -> None:
    git = shutil.which("git")
    if git is None or not (TOP / ".git").exists():
        pytest.skip("this is not a git repository")
    listed = subprocess.run(
        [git, "-C", TOP, "ls-files", "--cached", "--others", "--exclude-standard"],
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    with tarfile.open(built[0]) as archive:
        members = {member.name.removeprefix(f"{NAME}/"): member for member in archive}
    assert {name for name in listed if (TOP / name).exists()} <= members.keys()
    assert members[".ci/run"].mode == 0o755
    assert not [name for name in members if "__pycache__" in name or name.endswith(".pyc")]


def test_description_for_the_package_index(metadata: Message) -> None:
    text = metadata.get_payload()
    assert isinstance(text, str)
    links = re.findall(r"\]\(([^)\s]+)\)|^\[[^\]]+\]: (\S+)$", text, re.M)
    files = f"{PROJECT.url}/blob/v{__version__}/"
    own = [url.removeprefix(files) for pair in links for url in pair if url.startswith(files)]
    assert len(own) > 15
    for path in own:
        assert (TOP / path.partition("#")[0]).exists(), path
    others = [url for pair in links for url in pair if url and not url.startswith(files)]
    assert all(url.startswith(("https://", "#")) for url in others), others
    assert metadata["Description-Content-Type"] == "text/markdown"


def test_fields_for_the_package_index(metadata: Message) -> None:
    assert metadata["Name"] == "mos-tls-tunnel"
    assert metadata["Version"] == __version__
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Author"]
    assert metadata["License"] == "MIT"
    base = [line for line in metadata.get_all("Requires-Dist", []) if "extra" not in line]
    assert base == ["cryptography>=38"]
    classifiers = metadata.get_all("Classifier", [])
    assert "Typing :: Typed" in classifiers
    for minor in (11, 12, 13, 14):
        assert f"Programming Language :: Python :: 3.{minor}" in classifiers
    labels = [line.split(", ")[0] for line in metadata.get_all("Project-URL", [])]
    assert labels == ["Documentation", "Changes", "Issues"]
    assert metadata["Home-page"] == PROJECT.url
