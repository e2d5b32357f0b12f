"""Reads files given by options: whole, up to a limit, with errors that name the option."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from contextvars import ContextVar

from mtt.errors import UsageError, describe
from mtt.log import logger

# Files that a warning has named, by option and path, each as it was then: device, inode and time of
# the last change. A configuration that is read again must not warn again.
_warned: dict[tuple[str, str], tuple[int, int, int]] = {}
# More than a program's options name.
_MAX_WARNED = 1000

# Whether files are read for the second time, see `reading_again()`.
_again: ContextVar[bool] = ContextVar("again", default=False)


@contextlib.contextmanager
def reading_again() -> Iterator[None]:
    """Refuses pipes while inside: opening one again might wait for ever."""
    token = _again.set(True)
    try:
        yield
    finally:
        _again.reset(token)


def read_file(option: str, path: str, *, limit: int, secret: bool = False) -> bytes:
    """The content of the file `path`, which `option` gave; may be a pipe, but not again.

    With `secret`, logs a warning if every user of this machine can read the file. Raises UsageError
    if the file cannot be read or has more than `limit` bytes.
    """
    try:
        if _again.get() and stat.S_ISFIFO(os.stat(path).st_mode):
            raise UsageError(f"{option}: {path} is a pipe, which is read at the start alone")
        with open(path, "rb") as file:
            content = file.read(limit + 1)
            status = os.fstat(file.fileno())
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise UsageError(f"{option}: cannot read {path}: {describe(error)}") from None
    if len(content) > limit:
        raise UsageError(f"{option}: {path} has more than {limit} bytes; is it the right file?")
    if secret:
        warn_if_exposed(option, path, status)
    return content


def warn_if_exposed(option: str, path: str, status: os.stat_result) -> None:
    """Log a warning if every user of this machine can read the secrets in the file `path`.

    There is one warning until the file, or its mode, changes.
    """
    key, version = (option, path), (status.st_dev, status.st_ino, status.st_ctime_ns)
    # Readable by the group is fine: root writes the file, and the service's group reads it.
    is_exposed = stat.S_ISREG(status.st_mode) and status.st_mode & stat.S_IROTH
    if os.name != "posix" or not is_exposed or _warned.get(key) == version:
        return
    if len(_warned) >= _MAX_WARNED:
        _warned.clear()
    _warned[key] = version
    logger.warning("%s: every user can read %s; run chmod o-r on it", option, path)


def warn_if_open(option: str, path: str) -> None:
    """As `warn_if_exposed`, for a file that was read before."""
    with contextlib.suppress(OSError, ValueError):
        warn_if_exposed(option, path, os.stat(path))


def read_text(option: str, path: str, *, limit: int, secret: bool = False) -> str:
    """As `read_file`, decoded from UTF-8 without a byte order mark. Raises UsageError."""
    content = read_file(option, path, limit=limit, secret=secret)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{option}: {path} is not UTF-8 text (byte {error.start})") from None
