"""The Debian package, installed with dpkg in an overlay of this machine's own system."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.packaging.life import check_life
from tests.packaging.roots import Root
from tests.support.processes import Processes
from tests.support.programs import missing, require_program

MANUAL = "man --where mtt-client mtt-server anytls-client anyproxy-gateway >/dev/null"
# It looks for the programs and the manual pages that the units name.
UNITS = "cd /usr/lib/systemd/system && systemd-analyze verify mtt-*.* any*.*"


@pytest.mark.deadline(120)
def test_life_of_the_package(
    package: Path, newer: Path, tmp_path: Path, processes: Processes
) -> None:
    for program in ("dpkg", "man", "systemd-analyze"):
        require_program(program)
    root = Root(Path("/"), tmp_path, processes, network=False)
    if root.attempt("python3 -Ic 'import cryptography'")[0]:
        missing("this system has no python3-cryptography")
    install = "dpkg --force-unsafe-io --install {}"
    check_life(root, package, newer, install, check=f"{MANUAL} && {UNITS}")
