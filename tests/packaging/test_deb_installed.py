"""The Debian package, installed with dpkg in an overlay of this machine's own system."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.packaging.life import check_life
from tests.packaging.roots import Root
from tests.support.processes import Processes
from tests.support.programs import missing, require_program


@pytest.mark.deadline(120)
def test_life_of_the_package(
    package: Path, newer: Path, tmp_path: Path, processes: Processes
) -> None:
    require_program("dpkg")
    root = Root(Path("/"), tmp_path, processes, network=False)
    if root.attempt("python3 -Ic 'import cryptography'")[0]:
        missing("this system has no python3-cryptography")
    check_life(root, package, newer, "dpkg --force-unsafe-io --install {}")
