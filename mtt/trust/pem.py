"""Sources of certificates and keys: a file, or text in a configuration file."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mtt.errors import StartError, UsageError, describe
from mtt.files import warn_if_exposed

# OpenSSL opens descriptors of this process under this path (Linux).
_DESCRIPTORS = "/proc/self/fd"


@dataclass(frozen=True, slots=True)
class InlinePem:
    """PEM text in a configuration file."""

    label: str  # file and key path, for errors
    text: str = field(repr=False)

    def __str__(self) -> str:
        return self.label


# A path (empty for none) or the text itself.
PemSource = str | InlinePem


def labelled(option: str, source: PemSource) -> str:
    """The start of an error text about `source`, which `option` gave."""
    return f"{option}: {source}" if isinstance(source, str) else source.label


def read_pem(option: str, source: PemSource, *, secret: bool = False) -> bytes:
    """The content of `source`, which may be a `secret`, see `read_file`. Raises UsageError."""
    if isinstance(source, InlinePem):
        return source.text.encode(errors="replace")
    try:
        status = os.stat(source)
        if stat.S_ISFIFO(status.st_mode):  # it can be read only once
            raise UsageError(f"{option}: {source} is a pipe; give a file")
        if secret:
            warn_if_exposed(option, source, status)
        return Path(source).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise UsageError(f"{option}: cannot read {source}: {describe(error)}") from None


@contextlib.contextmanager
def pem_path(source: PemSource) -> Iterator[str]:
    """A path for `source`, because `ssl` loads only from files. Raises StartError."""
    if isinstance(source, str):
        yield source
    else:
        with memory_file(read_pem("", source)) as path:
            yield path


@contextlib.contextmanager
def memory_file(content: bytes) -> Iterator[str]:
    """The path of a temporary file with `content`, which only this user can open.

    The file is in memory where the system supports that, so that a crash leaves no key on disk;
    otherwise in a temporary directory. Raises StartError (no place for the file).
    """
    descriptor = _memory_descriptor(content)
    if descriptor is not None:
        try:
            yield f"{_DESCRIPTORS}/{descriptor}"
        finally:
            os.close(descriptor)
        return

    import tempfile  # 4 ms

    with contextlib.ExitStack() as stack:
        try:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="mtt-"))
            path = os.path.join(directory, "identity.pem")
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(content)
        except OSError as error:
            raise StartError(
                f"no place for a temporary file ({describe(error)}); set TMPDIR to a writable "
                "directory, or give -cert and -key"
            ) from None
        yield path


def _memory_descriptor(content: bytes) -> int | None:
    """A descriptor of a file in memory; None if the system has no such files."""
    try:
        descriptor = os.memfd_create("mtt")
    except (AttributeError, OSError):  # not Linux; forbidden by a container's seccomp filter
        return None
    with contextlib.suppress(OSError):
        if os.path.exists(f"{_DESCRIPTORS}/{descriptor}"):  # not in a chroot without /proc
            with open(descriptor, "wb", closefd=False) as file:
                file.write(content)
            return descriptor
    os.close(descriptor)
    return None
