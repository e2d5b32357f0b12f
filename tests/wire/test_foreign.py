"""Other programs, by how they begin."""

from __future__ import annotations

import pytest

from mtt.wire.foreign import tunnel_advice

SAME_MODE = "use the same mode, -mux and -wss, on both ends"


@pytest.mark.parametrize(
    ("first", "advice"),
    [
        (b"\2\0\0\0", "the peer speaks smux version 2; set it to version 1"),
        (b"GET / HTTP/1.1", f"the peer speaks HTTP; {SAME_MODE}"),
        (b"SSH-2.0-OpenSSH", SAME_MODE),
        (b"\0", SAME_MODE),
    ],
)
def test_advice_names_the_protocol_and_the_fix(first: bytes, advice: str) -> None:
    assert tunnel_advice(first) == advice
