"""A name and the password that goes with it."""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class User:
    """Somebody with a password."""

    name: str
    password: str = field(repr=False)

    def accepts(self, name: bytes, password: bytes) -> bool:
        """Whether these are they; how long that takes does not tell which byte is wrong."""
        # No `and`: that would tell whether the name is right.
        return hmac.compare_digest(name, self.name.encode()) & hmac.compare_digest(
            password, self.password.encode()
        )
