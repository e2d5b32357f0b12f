"""Password lookup in constant time."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from typing import Generic, TypeVar

Owner = TypeVar("Owner")

# 128 bits: with a million users, a wrong hash matches a user's once in 2**108 tries.
_TAG_SIZE = 16


class Passwords(Generic[Owner]):
    """Finds the owner of a password by the hash that a client sends (`wire.anytls.password_hash`).

    Such a hash is as good as the password, so the time of a lookup must reveal nothing about the
    users' hashes. `hmac.compare_digest()` with each would take time in proportion to their number.
    A dict of the hashes would compare them with the client's, and its hash function (SipHash) is
    not designed to hide the position of an entry.

    So the dict's keys are BLAKE2 digests of the hashes under a random key of this process: an
    attacker can neither predict nor choose what is looked up. A lookup computes one digest, for ten
    users or for 100 000.
    """

    def __init__(self, owners: Iterable[tuple[bytes, Owner]]) -> None:
        self._key = secrets.token_bytes(hashlib.blake2b.MAX_KEY_SIZE)
        self._owners = {self._tag(hashed): owner for hashed, owner in owners}

    def __len__(self) -> int:
        return len(self._owners)

    def find(self, shown: bytes) -> Owner | None:
        """The owner of the password with the hash `shown`, or None."""
        return self._owners.get(self._tag(shown))

    def _tag(self, hashed: bytes) -> bytes:
        return hashlib.blake2b(hashed, key=self._key, digest_size=_TAG_SIZE).digest()
