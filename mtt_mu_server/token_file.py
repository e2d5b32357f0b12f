"""The controller's token."""

from __future__ import annotations

import os
import re

from mtt.errors import UsageError, describe
from mtt.log import logger

# The output of `openssl rand -hex 8`: 64 bits, infeasible to guess at a thousand tries a second.
MIN_TOKEN_LENGTH = 16
# A token is one header line.
MAX_TOKEN_LENGTH = 4096
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*", re.ASCII)  # RFC 6750, 2.1


def read_token(path: str) -> str:
    """The token in a file. Raises UsageError if it is missing or invalid."""
    option = "-c-token-file"
    try:
        with open(path, encoding="ascii") as file:
            token = file.read(MAX_TOKEN_LENGTH + 1).strip()
            others = os.fstat(file.fileno()).st_mode & 0o077
    except (OSError, UnicodeDecodeError, ValueError) as error:
        reason = "it is not text" if isinstance(error, UnicodeDecodeError) else describe(error)
        raise UsageError(f"{option}: cannot read {path}: {reason}") from None
    how = "make one with: openssl rand -hex 32"
    if not MIN_TOKEN_LENGTH <= len(token) <= MAX_TOKEN_LENGTH:
        raise UsageError(f"{option}: the token in {path} has fewer than {MIN_TOKEN_LENGTH} "
                         f"characters, or too many; {how}")  # fmt: skip
    if not _TOKEN.fullmatch(token):
        raise UsageError(
            f"{option}: {path} does not hold one token of letters, digits and -._~+/; {how}"
        )
    if others and os.name == "posix":
        logger.warning("%s: others may read %s; run chmod 600 on it", option, path)
    return token
