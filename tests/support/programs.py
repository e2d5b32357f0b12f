"""Real programs that some tests need: nginx, ss-server, curl and the like."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest

# Debian keeps daemons outside an ordinary user's PATH.
ADMIN_DIRECTORIES = "/usr/local/sbin:/usr/sbin:/sbin"


def require_program(name: str) -> str:
    """The path of program `name`; without it the test is skipped.

    With MTT_REQUIRE_REAL=1 in the environment it fails instead, so that a CI run cannot be
    green because a package was missing.
    """
    search = os.environ.get("PATH", os.defpath) + os.pathsep + ADMIN_DIRECTORIES
    found = shutil.which(name, path=search)
    if found is None:
        missing(f"the program {name!r} is not installed")
    return found


def missing(reason: str) -> NoReturn:
    """Skip the test for `reason`, or fail it where the real programs are required."""
    if os.environ.get("MTT_REQUIRE_REAL") == "1":
        pytest.fail(f"{reason}, and MTT_REQUIRE_REAL=1 asks for it", pytrace=False)
    pytest.skip(reason)
