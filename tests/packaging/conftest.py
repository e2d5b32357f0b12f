from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.programs import require_program
from tools import deb
from tools.project import run


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Debian package."""
    require_program("dpkg-deb")
    (path,) = deb.build(tmp_path_factory.mktemp("deb"))
    return path


@pytest.fixture(scope="session")
def newer(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a higher version, and with a module less."""
    return changed_package(package, tmp_path_factory.mktemp("newer"), "9.0")


def changed_package(package: Path, directory: Path, version: str) -> Path:
    tree = directory / "tree"
    run(["dpkg-deb", "--raw-extract", str(package), str(tree)])
    control = tree / "DEBIAN" / "control"
    lines = control.read_text().splitlines()
    control.write_text("".join(
        f"Version: {version}\n" if line.startswith("Version: ") else f"{line}\n" for line in lines
    ))  # fmt: skip
    shutil.rmtree(tree / "usr/share/mos-tls-tunnel/anytls")
    (tree / "usr/share/mos-tls-tunnel/mtt/version.py").write_text(f'__version__ = "{version}"\n')
    path = directory / f"mos-tls-tunnel_{version}_all.deb"
    run(["dpkg-deb", "--root-owner-group", "--build", str(tree), str(path)])
    return path
