"""The directory that keeps a server's self-signed identity from one start to the next.

It holds `key.pem`, which the server's pin is made of, and `cert.pem`, a certificate for that key.
Whoever has pinned the server loses it with the key only: a certificate that is missing, because it
was removed to get one for another name, is made anew for the key that is there.
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
    """The paths of certificate and key in `directory`; what is missing is made for `name`.

    `name` is a DNS name, an IP address, or empty: then any name will do. The files that are there
    are not checked beyond that; whoever loads them does.

    Raises UsageError (the certificate is for another name, or its key is missing or unusable) or
    StartError (the directory cannot be written).
    """
    cert, key = Path(directory, CERTIFICATE), Path(directory, KEY)
    try:
        Path(directory).mkdir(mode=0o700, exist_ok=True)
        # Two servers that start at the same moment get the same identity.
        with _locked(directory):
            if cert.exists():
                _check(cert, key, name)
            else:
                _make(cert, key, name)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise StartError(f"-cert-dir: cannot use {directory}: {describe(error)}") from None
    return str(cert), str(key)


def _check(cert: Path, key: Path, name: str) -> None:
    if not key.exists():
        raise UsageError(
            f"-cert-dir: {cert} is there, but its key is not ({key}); restore the key, or remove "
            "the certificate to get a new identity"
        )
    names = Identity(cert.read_bytes()).names if name else ()
    if names and name.lower() not in (known.lower() for known in names):
        raise UsageError(
            f"-n: the certificate {cert} is for {names[0]}, not {name}; remove it to get one for "
            f"{name} (the pin stays the same), or leave out -n"
        )


def _make(cert: Path, key: Path, name: str) -> None:
    """Write a certificate, and before that a key if there is none."""
    old_key = key.read_bytes() if key.exists() else b""
    try:
        certificate_pem, key_pem = child.run(self_signed, name, old_key)
    except ValueError as error:
        raise UsageError(
            f"-cert-dir: {key} is no key to make a certificate for ({describe(error)}); restore "
            "it, or remove it to get a new identity"
        ) from None
    # In this order: if we die in between, the certificate is what is missing.
    if not old_key:
        _write(key, key_pem, 0o600)
    _write(cert, certificate_pem, 0o644)


def _write(path: Path, content: bytes, mode: int) -> None:
    """Write a file so that it is never seen in parts, not even after a power failure."""
    import tempfile  # slow to import, and mostly not needed

    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:  # created for this user alone, whatever the umask
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
    """Keep others who do the same out, for the milliseconds that it takes."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)  # unlocks
