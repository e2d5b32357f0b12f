"""A user: a name and a password."""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class User:
    """A user with a password."""

    name: str
    password: str = field(repr=False)

    def accepts(self, name: bytes, password: bytes) -> bool:
        """Whether name and password match, compared in constant time."""
        # No `and`, which would reveal by its timing whether the name is right.
        return hmac.compare_digest(name, self.name.encode()) & hmac.compare_digest(
            password, self.password.encode()
        )
