"""Other programs, by how they begin."""

from __future__ import annotations

import random

import pytest

from mtt.wire.foreign import LONGEST, V2RAY_PLUGIN_MUX, is_v2ray_plugin_mux, tunnel_advice

# As recorded: with data, and without.
WITH_DATA = bytes.fromhex("000c00010101010000017f000001000d") + b"hello world 0"
WITHOUT = bytes.fromhex("000c00010100010000017f000001")


@pytest.mark.parametrize("first", [WITH_DATA, WITHOUT, WITH_DATA[:LONGEST]])
def test_v2ray_plugin_with_mux_is_recognised(first: bytes) -> None:
    assert is_v2ray_plugin_mux(first)
    assert tunnel_advice(first) == V2RAY_PLUGIN_MUX


def test_other_bytes_are_not_taken_for_v2ray_plugin() -> None:
    first = WITH_DATA[:LONGEST]
    for at in range(LONGEST):
        assert not is_v2ray_plugin_mux(first[:at])
        for byte in range(256):
            changed = first[:at] + bytes([byte]) + first[at + 1 :]
            known = changed == first or (at == 5 and byte == 0)
            assert is_v2ray_plugin_mux(changed) is known
    rng = random.Random(3)
    assert not any(is_v2ray_plugin_mux(rng.randbytes(20)) for _ in range(1000))
    assert not is_v2ray_plugin_mux(b"")
