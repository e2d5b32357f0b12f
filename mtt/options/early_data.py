"""Early data, as V2Ray and Xray write it in their configurations: ?ed=N at the end of the path."""

from __future__ import annotations

from mtt.errors import UsageError
from mtt.options.flags import Values

_KEY = "ed="


def without_early_data(target: str) -> str:
    """The path or request target `target` without `ed=N`."""
    path, _, query = target.partition("?")
    rest = "&".join(part for part in query.split("&") if not part.startswith(_KEY))
    return f"{path}?{rest}" if rest else path


def given_early_data(target: str, values: Values, most: int) -> tuple[str, int]:
    """The request target `target` without `ed=N`, and the bytes of early data, at most `most`.

    Not with -mux, whose connections exist before their streams. Raises UsageError.
    """
    size: int = values["early-data"]
    found = [part for part in target.partition("?")[2].split("&") if part.startswith(_KEY)]
    if found and size:
        raise UsageError("-early-data: ?ed= in -wss-path means the same; remove one")
    option = "-early-data"
    if found:
        option, text = "-wss-path: ?ed=", found[-1].removeprefix(_KEY)
        size = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else -1
    if not 0 <= size <= most:
        raise UsageError(f"{option}: the number is not from 0 to {most}")
    if values["mux"]:
        if values["early-data"]:
            raise UsageError("-early-data and -mux exclude each other; remove one")
        size = 0
    if size and values["preconnect"]:
        raise UsageError(
            "-early-data and -preconnect exclude each other: early data needs a new connection"
        )
    return without_early_data(target), size
