"""The directory that keeps a server's self-signed identity across restarts.

It holds `key.pem`, from which the pin is derived, and `cert.pem`. If the certificate is missing,
for example because the operator removed it to get one for another name, a new one is made for the
existing key, so that the pin stays.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from mtt.errors import StartError, UsageError, describe
from mtt.trust import child
from mtt.trust.identity import Identity
from mtt.trust.selfsigned import self_signed

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

CERTIFICATE, KEY = "cert.pem", "key.pem"


def kept_pair(directory: str, name: str) -> tuple[str, str]:
    """The paths of certificate and key in `directory`; missing files are created for `name`.

    An empty `name` accepts any. Existing files are checked further when they are loaded.
    Raises UsageError (the certificate is for another name, or its key is missing or unusable) or
    StartError (the directory cannot be written).
    """
    cert, key = Path(directory, CERTIFICATE), Path(directory, KEY)
    try:
        Path(directory).mkdir(mode=0o700, exist_ok=True)
        # Locked so that two servers that start at the same time get the same identity.
        with _locked(directory):
            if cert.exists():
                _check(cert, key, name)
            else:
                _make(cert, key, name)
    except FileNotFoundError:
        raise StartError(
            f"-cert-dir: cannot create {directory}: the directory above does not exist; create it"
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = describe(error)
        if isinstance(error, FileExistsError):
            reason = "it is not a directory; name another one"
        raise StartError(f"-cert-dir: cannot use {directory}: {reason}") from None
    return str(cert), str(key)


def _check(cert: Path, key: Path, name: str) -> None:
    if not key.exists():
        raise UsageError(
            f"-cert-dir: {cert} exists, but its key {key} is missing; restore the key, or remove "
            "the certificate to get a new identity"
        )
    names = Identity(_read(cert)).words.names if name else ()
    if names and name.lower() not in (known.lower() for known in names):
        raise UsageError(
            f"-n: the certificate {cert} is for {names[0]}, not {name}; remove it to get one for "
            f"{name} (the pin stays the same), or omit -n"
        )


def _make(cert: Path, key: Path, name: str) -> None:
    old_key = _read(key) if key.exists() else b""
    try:
        certificate_pem, key_pem = child.run(self_signed, name, old_key)
    except ValueError as error:
        raise UsageError(
            f"-cert-dir: {key} is not a usable private key ({describe(error)}); restore it, or "
            "remove it to get a new identity"
        ) from None
    # The key first: a crash in between leaves only the certificate missing, which is recoverable.
    if not old_key:
        _write(key, key_pem, 0o600)
    _write(cert, certificate_pem, 0o644)


def _read(path: Path) -> bytes:
    if path.is_fifo():  # opening it might wait for ever
        raise UsageError(f"-cert-dir: {path} is a pipe; remove it")
    return path.read_bytes()


def _write(path: Path, content: bytes, mode: int) -> None:
    """Write a file atomically, even across a power failure."""
    import tempfile  # slow to import and rarely needed

    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:  # mode 0600, whatever the umask
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


@contextlib.contextmanager
def _locked(directory: str) -> Iterator[None]:
    """Hold an exclusive lock on the directory, for a few milliseconds."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)  # unlocks
