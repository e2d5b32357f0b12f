"""Codecs are pure: bytes in, tuples out, and nothing of the machine."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mtt.wire

MODULES = sorted(Path(mtt.wire.__file__).parent.glob("*.py"))
IMPURE = {"asyncio", "select", "selectors", "socket", "ssl", "threading", "time"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_codec_imports_nothing_impure(path: Path) -> None:
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")
    assert not {name.partition(".")[0] for name in imported} & IMPURE
    assert {name for name in imported if name.startswith("mtt")} <= {
        "mtt.errors",
        "mtt.outcome",
        "mtt.wire",
        *(f"mtt.wire.{other.stem}" for other in MODULES),
    }


def test_codecs_load_nothing_impure() -> None:
    """Nor does what they import; `time` is there from the interpreter's start."""
    names = [f"mtt.wire.{path.stem}" for path in MODULES if path.stem != "__init__"]
    program = (
        "import importlib, sys\n"
        f"for name in {names}: importlib.import_module(name)\n"
        f"print(*sorted({IMPURE - {'time'}} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True,
        cwd=Path(mtt.wire.__file__).parents[2],
    )  # fmt: skip
    assert done.stdout.split() == []
