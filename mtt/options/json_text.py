"""JSON with comments (`//`, `#`, `/* */`) and trailing commas, as sing-box and Xray accept it.

Such configuration files are common.
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from mtt.errors import UsageError
from mtt.options.flags import quoted

# Strings are matched too, so that comment marks inside them are kept.
_COMMENT = re.compile(r'"(?:[^"\\\n]|\\.)*"|//[^\n]*|#[^\n]*|/\*.*?\*/', re.DOTALL)
_LAST_COMMA = re.compile(r'"(?:[^"\\\n]|\\.)*"|,(?=\s*[\]}])')
_NOT_LINE_END = re.compile(r"[^\n]")


def parse_json(name: str, text: str) -> Any:
    """The value of `text`. Raises UsageError, whose text starts with `name`.

    Equal keys in one object are an error: one of them would be lost.
    """
    # Replaced by spaces, so that line and column numbers stay correct.
    text = _COMMENT.sub(_blanked, text)
    text = _LAST_COMMA.sub(_blanked, text)

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise UsageError(f"{name}: an object has the key {quoted(twice)} twice; remove one")
        return found

    def constant(word: str) -> NoReturn:
        raise UsageError(f"{name}: {word} is not JSON")  # Python's decoder accepts NaN and Infinity

    try:
        return json.loads(text, object_pairs_hook=members, parse_constant=constant)
    except json.JSONDecodeError as error:
        raise UsageError(
            f"{name}: not JSON at line {error.lineno}, column {error.colno}: {error.msg.lower()}"
        ) from None
    except ValueError:  # a number with thousands of digits: Python's own limit
        raise UsageError(f"{name}: a number has too many digits") from None
    except RecursionError:
        raise UsageError(f"{name}: brackets are nested too deeply") from None


def _blanked(match: re.Match[str]) -> str:
    found = match[0]
    return found if found.startswith('"') else _NOT_LINE_END.sub(" ", found)
