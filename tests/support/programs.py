"""What only some tests need: programs such as nginx and curl, packages such as uvloop."""

from __future__ import annotations

import importlib
import os
import shutil
from pathlib import Path
from typing import Any, NoReturn

import pytest


def require_program(name: str) -> str:
    """The path of program `name`; without it the test is skipped.

    With MTT_REQUIRE_REAL=1 in the environment it fails instead, so that a CI run cannot be
    green because a package was missing.
    """
    directories = [Path(path) for path in os.environ.get("PATH", os.defpath).split(os.pathsep)]
    # Debian keeps daemons outside an ordinary user's PATH.
    directories += [path.with_name("sbin") for path in directories if path.name == "bin"]
    found = shutil.which(name, path=os.pathsep.join(map(str, directories)))
    if found is None:
        missing(f"the program {name!r} is not installed")
    return found


def require_package(name: str) -> Any:
    """The Python module `name`; without it the same happens as without a program."""
    try:
        return importlib.import_module(name)
    except ImportError:
        missing(f"the Python package {name.partition('.')[0]!r} is not installed")


def missing(reason: str) -> NoReturn:
    """Skip the test or module for `reason`, or fail where nothing may be missing."""
    if os.environ.get("MTT_REQUIRE_REAL") == "1":
        pytest.fail(f"{reason}, and MTT_REQUIRE_REAL=1 asks for it", pytrace=False)
    pytest.skip(reason, allow_module_level=True)
