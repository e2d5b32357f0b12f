"""Files that options name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def written(path: Path, content: Any) -> str:
    """Write a file that its owner alone can read, JSON unless `content` is a text; its path."""
    path.touch(0o600)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)
