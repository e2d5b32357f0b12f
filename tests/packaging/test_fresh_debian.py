"""The ways to install that the README shows, each in a fresh Debian made by debootstrap.

Minutes and the network are needed, so these tests run only when asked: `make test-packages`, or
MTT_PACKAGING=1. With MTT_ROOTS=DIRECTORY the fresh systems stay there for the next run.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from mtt.version import __version__
from tests.packaging.life import check_life, check_tunnel
from tests.packaging.roots import Root, asked
from tests.packaging.test_dist import require_setuptools
from tests.support.processes import Processes
from tools import dist
from tools.project import TOP, read_project


def install_lines(document: str) -> list[str]:
    """The commands that `document` shows for the installation."""
    text = (TOP / document).read_text()
    command = r"^    (?:sudo )?((?:env .*)?(?:apt|pipx) install .*|make install)$"
    return re.findall(command, text, re.M)


def test_documents_name_this_version() -> None:
    package, wheel, repository = install_lines("README.md")
    assert package == f"apt install ./mos-tls-tunnel_{__version__}_all.deb"
    assert wheel == f"pipx install ./mos_tls_tunnel-{__version__}-py3-none-any.whl"
    assert repository == "make install"
    assert {package, wheel} < set(install_lines("docs/install.md"))


@pytest.fixture
def root(base: Path, tmp_path: Path, processes: Processes) -> Root:
    root = Root(base, tmp_path, processes, network=True)
    root.run("echo 'APT::Get::Assume-Yes true;' >/etc/apt/apt.conf.d/90yes; apt-get -q=2 update")
    return root


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source distribution and the wheel."""
    require_setuptools()
    sdist, wheel = dist.build(tmp_path_factory.mktemp("dist"))
    return sdist, wheel


def pip_settings(root: Root) -> dict[str, str]:
    """The settings of pip that this machine needs to reach an index, for use in `root`."""
    settings = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    if certificates := settings.get("PIP_CERT"):
        root.put(Path(certificates), str(Path(certificates).parent))
    return settings


@asked
@pytest.mark.deadline(600)
def test_debian_package(root: Root, package: Path, newer: Path) -> None:
    install = install_lines("README.md")[0].replace(f"./{package.name}", "{}")
    check_life(root, package, newer, install, dependencies=True)


@asked
@pytest.mark.deadline(600)
def test_pipx(root: Root, built: tuple[Path, Path]) -> None:
    root.run("apt-get -q=2 install --no-install-recommends pipx", seconds=300)
    root.put(built[1], "/tmp")
    settings = pip_settings(root)
    root.run(f"cd /tmp && {install_lines('README.md')[1]}", seconds=200, **settings)
    check_tunnel(root, "/root/.local/bin/")
    (for_all,) = [line for line in install_lines("docs/install.md") if "/opt/pipx" in line]
    root.run(f"cd /tmp && {for_all}", seconds=200, **settings)
    assert root.run("cd / && mtt-server -version") == f"mtt-server {__version__}\n"
    assert root.run("command -v mtt-server") == "/usr/local/bin/mtt-server\n"
    (inject,) = re.findall(r"`(pipx inject [^`]+)`", (TOP / "docs/install.md").read_text())
    root.run(inject, seconds=200, **settings)


@asked
@pytest.mark.deadline(600)
def test_repository(root: Root, built: tuple[Path, Path]) -> None:
    """The source distribution stands for the repository; it has the same files."""
    root.run("apt-get -q=2 install --no-install-recommends make python3-venv", seconds=300)
    source = root.put(built[0], "/tmp")
    root.run(f"mkdir /src && tar -xzf {source} --strip-components=1 -C /src")
    root.run(f"cd /src && {install_lines('README.md')[2]}", seconds=200, **pip_settings(root))
    check_tunnel(root, "/src/.venv/bin/")
    text = (TOP / "docs/install.md").read_text().partition("For all users, without pipx:\n\n")[2]
    lines = text.partition("\n\n")[0].replace("sudo ", "")
    root.run(f"set -e; cd /src\n{lines}", seconds=300, **pip_settings(root))
    for name in read_project().commands:
        assert root.run(f"/usr/local/bin/{name} -version") == f"{name} {__version__}\n"
