"""Failed logins: which addresses are blocked, for how long, and in how much memory."""

from __future__ import annotations

import pytest

from mtt.users.login_throttle import (
    MAX_ADDRESSES,
    MAX_FAILURES,
    MAX_SITE_FAILURES,
    WINDOW,
    LoginThrottle,
)


class Scene:
    def __init__(self) -> None:
        self.now = 1000.0
        self.throttle = LoginThrottle(lambda: self.now)

    def fails(self, address: str, times: int = MAX_FAILURES) -> None:
        for _ in range(times):
            assert not self.throttle.blocks(address)
            self.throttle.failed(address)


def test_address_is_blocked_after_too_many_failures() -> None:
    scene = Scene()
    scene.fails("192.0.2.1", MAX_FAILURES - 1)
    assert not scene.throttle.blocks("192.0.2.1")
    scene.throttle.failed("192.0.2.1")
    assert scene.throttle.blocks("192.0.2.1")
    assert not scene.throttle.blocks("192.0.2.2")


def test_block_ends_with_its_window_and_starts_anew() -> None:
    scene = Scene()
    scene.fails("192.0.2.1", MAX_FAILURES - 1)
    scene.now += WINDOW - 1
    scene.fails("192.0.2.1", 1)
    assert scene.throttle.blocks("192.0.2.1")
    scene.now += 1
    scene.fails("192.0.2.1")
    assert scene.throttle.blocks("192.0.2.1")


def test_rare_failures_never_block() -> None:
    scene = Scene()
    for _ in range(100):
        scene.fails("192.0.2.1", 1)
        scene.now += WINDOW / (MAX_FAILURES - 1)


@pytest.mark.parametrize(
    "one, other, is_same",
    [
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("2001:db8::1", "2001:db8::ffff:0:0:1", True),  # one /64
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("", "192.0.2.1", False),
        ("", "", True),
    ],
)
def test_addresses_of_one_network_count_together(one: str, other: str, is_same: bool) -> None:
    scene = Scene()
    scene.fails(one)
    assert scene.throttle.blocks(other) is is_same


def test_many_networks_of_one_site_are_blocked() -> None:
    scene = Scene()
    for number in range(MAX_SITE_FAILURES):
        scene.fails(f"2001:db8:1:{number:x}::1", 1)
    assert scene.throttle.blocks("2001:db8:1:ffff::1")
    assert not scene.throttle.blocks("2001:db8:2::1")
    scene.now += WINDOW
    assert not scene.throttle.blocks("2001:db8:1:ffff::1")


def test_memory_is_bounded_for_guesses_from_many_networks() -> None:
    scene = Scene()
    for number in range(MAX_ADDRESSES + 100):
        scene.throttle.failed(f"2001:db8:{number & 0xFFFF:x}:{number >> 4:x}::1")
        assert len(scene.throttle._failures) <= MAX_ADDRESSES


def test_memory_is_bounded_and_the_oldest_is_forgotten() -> None:
    scene = Scene()
    scene.fails("192.0.2.1")
    scene.fails("192.0.2.2", MAX_FAILURES - 1)
    for number in range(MAX_ADDRESSES - 2):
        scene.throttle.failed(f"10.0.{number >> 8}.{number & 255}")
    scene.throttle.failed("192.0.2.2")  # not the oldest any more
    assert scene.throttle.blocks("192.0.2.1")
    scene.throttle.failed("198.51.100.1")
    assert not scene.throttle.blocks("192.0.2.1")
    assert scene.throttle.blocks("192.0.2.2")
    assert len(scene.throttle._failures) == MAX_ADDRESSES
