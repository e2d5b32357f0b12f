"""Data that a socket cannot take yet, as a list of pieces."""

from __future__ import annotations

import socket
from typing import Any

from mtt.layers.base import Data

# Smaller pieces are joined, up to FULL_PIECE: each takes some hundred bytes of its own.
SMALL_PIECE = 4096
FULL_PIECE = 64 * 1024

# Pieces given to the kernel in one call: IOV_MAX is 1024 on Linux, and at least 16 (POSIX).
MAX_PIECES = 16

_GATHERS = hasattr(socket.socket, "sendmsg")  # not on Windows

Pieces = list[Data | bytearray]


def add(pieces: Pieces, data: Any, start: int) -> int:
    """Append `data` without its first `start` bytes. Returns the number of bytes appended."""
    view = memoryview(data)[start:]
    if not view:
        return 0
    last = pieces[-1] if pieces else None
    if len(view) >= SMALL_PIECE:
        pieces.append(view if isinstance(data, bytes) else bytes(view))
    elif isinstance(last, bytearray) and len(last) < FULL_PIECE:
        last += view
    else:
        pieces.append(bytearray(view))
    return len(view)


def send(pieces: Pieces, sock: socket.socket) -> int:
    """Send pieces, and remove what the kernel takes. Returns the number of bytes sent.

    Raises OSError as the socket does.
    """
    if len(pieces) > 1 and _GATHERS:
        count = sock.sendmsg(pieces[:MAX_PIECES])
    else:
        count = sock.send(pieces[0])
    rest, whole = count, 0
    while whole < len(pieces) and rest >= len(pieces[whole]):
        rest -= len(pieces[whole])
        whole += 1
    del pieces[:whole]
    if rest:
        pieces[0] = memoryview(pieces[0])[rest:]
    return count
