"""Users by what they show of their passwords."""

from __future__ import annotations

import hashlib
import random

from mtt.trust.passwords import Passwords


def shown(password: str) -> bytes:
    return hashlib.sha256(password.encode()).digest()


def test_only_known_passwords_are_found() -> None:
    passwords = Passwords((shown(f"password {n}"), n) for n in range(10_000))
    assert len(passwords) == 10_000
    assert all(passwords.find(shown(f"password {n}")) == n for n in range(10_000))
    assert passwords.find(shown("password 10000")) is None
    rng = random.Random(1)
    for n in range(1000):
        almost = bytearray(shown(f"password {n}"))
        almost[rng.randrange(32)] ^= 1 << rng.randrange(8)
        assert passwords.find(bytes(almost)) is None
    assert passwords.find(shown("password 1")[:31]) is None
    assert passwords.find(shown("password 1") + b"\0") is None
    assert passwords.find(b"") is None


def test_table_is_keyed_and_holds_no_password_hashes() -> None:
    first, second = (Passwords([(shown("secret"), "user")]) for _ in range(2))
    tables = [passwords._owners.keys() for passwords in (first, second)]
    assert not tables[0] & tables[1]
    assert shown("secret") not in tables[0] | tables[1]
