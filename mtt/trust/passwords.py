"""Whom a server lets in by password, looked up in a time that tells nothing."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from typing import Generic, TypeVar

Who = TypeVar("Who")

# 128 bits: among a million users a stranger's hash is taken for one of theirs once in 2**108 tries.
_TAG_SIZE = 16


class Passwords(Generic[Who]):
    """Finds the owner of a password by what a client shows: `mtt.wire.anytls.password_hash`.

    A client that knows such a hash needs no password, so nothing about those of the users may be
    learned from how long a lookup takes. `hmac.compare_digest()` with each of them would take as
    long as there are users. A dict of the hashes would compare what is shown with what is stored,
    by a hash function (SipHash) that was not made to hide where it landed. Here the keys are
    keyed BLAKE2 of the hashes, with a key that no process has twice. The digest that is looked up
    tells nothing about what was shown to whoever does not know that key, and nobody can choose
    it: two hashes that differ in one bit end up anywhere. So whatever time the dict takes, it is
    the time of a random key; and one digest is all that there is to compute, for ten users or for
    100 000.

    Args:
        owners: the hashes of the passwords, and whose they are.
    """

    def __init__(self, owners: Iterable[tuple[bytes, Who]]) -> None:
        self._key = secrets.token_bytes(hashlib.blake2b.MAX_KEY_SIZE)
        self._owners = {self._tag(hashed): who for hashed, who in owners}

    def __len__(self) -> int:
        return len(self._owners)

    def find(self, shown: bytes) -> Who | None:
        """Whose password has the hash `shown`; None if it is nobody's."""
        return self._owners.get(self._tag(shown))

    def _tag(self, hashed: bytes) -> bytes:
        return hashlib.blake2b(hashed, key=self._key, digest_size=_TAG_SIZE).digest()
