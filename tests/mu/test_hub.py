"""What the hub says to workers."""

from __future__ import annotations

import pytest

from mtt.process.link import MAX_MESSAGE, encode
from mtt.users.store import Row
from mtt_mu_server.api import BODY_LIMIT
from mtt_mu_server.hub import SLICE, _slices

# Most bytes in JSON for one in UTF-8.
LONG_LETTER = "\N{MUSICAL SYMBOL G CLEF}"


@pytest.mark.parametrize(
    ("count", "length"), [(0, 0), (1, BODY_LIMIT), (3, BODY_LIMIT), (2500, 10), (2500, 2000)]
)
def test_a_message_with_users_is_never_too_long(count: int, length: int) -> None:
    text = LONG_LETTER * (length // 4)
    rows: dict[str, Row] = {f"/{number}{text}": ("127.0.0.1:9", 0, 0, 0) for number in range(count)}
    found: dict[str, Row] = {}
    for piece in _slices(rows):
        assert 0 < len(piece) <= SLICE
        assert len(encode("put", piece)) < MAX_MESSAGE
        found |= piece
    assert list(found.items()) == list(rows.items())
