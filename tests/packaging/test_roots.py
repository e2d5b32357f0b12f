"""The systems that packages are tested in."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.packaging.roots import Root
from tests.support.processes import Processes


def test_a_root_is_ready_only_after_chroot(
    tmp_path: Path, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Before, commands would run in the root of this machine.
    program, wrapper = shutil.which("chroot"), tmp_path / "chroot"
    wrapper.write_text(f'#!/bin/sh\necho chroot\nexec {program} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    root = Root(Path("/"), tmp_path, processes, network=True)
    assert root.holder.output.split() == ["chroot", "mounted"]
