from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.packaging.roots import require_overlay
from tests.support.programs import require_program
from tools import deb
from tools.project import run

MIRROR = "http://deb.debian.org/debian"
SUITES = ("bookworm", "trixie")


@pytest.fixture(scope="session", params=SUITES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a fresh, minimal Debian; it stays in MTT_ROOTS for the next run."""
    debootstrap = require_program("debootstrap")
    require_overlay()
    kept = os.environ.get("MTT_ROOTS")
    directory = Path(kept) if kept else tmp_path_factory.mktemp("roots")
    system = directory / str(request.param)
    if not system.exists():
        partial = directory / f"{request.param}.partial"
        command = [debootstrap, "--variant=minbase", request.param, partial, MIRROR]
        subprocess.run(command, check=True, timeout=500, stdin=subprocess.DEVNULL)
        partial.rename(system)
    return system


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
