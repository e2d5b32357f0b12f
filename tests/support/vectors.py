"""Exchanges recorded between the Go programs, and some made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent.parent / "vectors"

Events = list[dict[str, Any]]


def names(pattern: str) -> list[str]:
    """The names of the exchanges that match a glob pattern, sorted."""
    return sorted(path.stem for path in _FOLDER.glob(f"{pattern}.json"))


def vector(name: str) -> Events:
    """The events of an exchange."""
    events: Events = json.loads((_FOLDER / f"{name}.json").read_text())["events"]
    return events


def stream_of(events: Events, direction: str) -> bytes:
    """All bytes sent in one direction, "c2s" or "s2c"."""
    return b"".join(bytes.fromhex(event["hex"]) for event in events if event["dir"] == direction)


WSS = names("*wss*")


def handshake(name: str) -> tuple[bytes, bytes]:
    """The upgrade request of an exchange, and its response."""
    events = vector(name)
    assert [event["dir"] for event in events[:2]] == ["c2s", "s2c"]
    return bytes.fromhex(events[0]["hex"]), bytes.fromhex(events[1]["hex"])
