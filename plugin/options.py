"""The option string of SIP003, `key=value;flag;key=value`, as options of the command line.

    string = piece *( ";" piece )
    piece  = *( boolean-key "," ) [ key [ "=" value ] ]

Spaces around keys and values, and empty pieces, are ignored. A backslash makes the next character
literal. A key ends at the first `=`; further ones belong to the value, as in v2ray-plugin. The
comma exists because the original's documentation writes `wss,key=...`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence

from mtt.errors import UsageError
from mtt.options.flags import Flag, Values, clipped, set_value, unknown_option

# Shadowsocks for Android adds this key, with or without a value. It means `V`.
ANDROID_VPN = "__android_vpn"
VPN_OPTION = "V"

_KEY = re.compile(r"[A-Za-z0-9_,=-]{1,30}")

# A character, and whether it was escaped, so that it never acts as a separator.
_Char = tuple[str, bool]

_SEMICOLON, _COMMA, _EQUALS = (";", False), (",", False), ("=", False)


def parse_options(flags: Sequence[Flag], text: str) -> Values:
    """The options in SS_PLUGIN_OPTIONS, in the form of `parse_args`.

    The last of equal keys wins, as on the command line. Raises UsageError with the key.
    """
    # Options that print something and exit, such as -h, are useless here.
    known = {flag.name: flag for flag in flags if not flag.final}
    booleans = {name for name, flag in known.items() if flag.kind == "bool"}
    vpn = VPN_OPTION in known
    values: Values = {}
    settings = _settings(text, booleans | {ANDROID_VPN} if vpn else booleans)
    for number, (key, value) in enumerate(settings, 1):
        if not key:
            raise UsageError("plugin options: found = without a key before it")
        if vpn and key == ANDROID_VPN:
            values[VPN_OPTION] = True
            continue
        # The original prefixes each key with a dash, and so accepts keys with one dash as well.
        name = key.removeprefix("-")
        # Text that does not look like a key may be part of a secret, and the error is logged.
        shown = clipped(name) if _KEY.fullmatch(name) else f"number {number}"
        label = f"plugin option {shown}"
        flag = known.get(name)
        if flag is None:
            raise unknown_option(label, name, value, known, dash="")
        if value is None and flag.kind != "bool":
            raise UsageError(f"{label} needs a value; write {name}={flag.placeholder}")
        set_value(values, flag, "true" if value is None else value, label=label)
    return values


def _settings(text: str, booleans: Collection[str]) -> Iterator[tuple[str, str | None]]:
    """Keys and values in `text`; the value is None if there is no `=`."""
    for piece in _split(_unescape(text), _SEMICOLON):
        start = 0
        for comma in [position for position, char in enumerate(piece) if char == _COMMA]:
            head = _text(piece[start:comma])
            if head not in booleans:
                break  # an ordinary character, usually of a value
            yield head, None
            start = comma + 1
        piece = piece[start:]
        if _EQUALS in piece:
            equals = piece.index(_EQUALS)
            yield _text(piece[:equals]), _text(piece[equals + 1 :])
        elif key := _text(piece):
            yield key, None


def _unescape(text: str) -> list[_Char]:
    chars: list[_Char] = []
    remaining = iter(text)
    for char in remaining:
        if char != "\\":
            chars.append((char, False))
            continue
        escaped = next(remaining, None)
        if escaped is None:
            raise UsageError(
                "plugin options end with a lone backslash; write a backslash itself as \\\\"
            )
        chars.append((escaped, True))
    return chars


def _split(chars: list[_Char], separator: _Char) -> Iterator[list[_Char]]:
    start = 0
    for position, char in enumerate(chars):
        if char == separator:
            yield chars[start:position]
            start = position + 1
    yield chars[start:]


def _text(chars: list[_Char]) -> str:
    """The characters as a string, stripped of unescaped surrounding spaces."""
    start, end = 0, len(chars)
    while start < end and _is_blank(chars[start]):
        start += 1
    while end > start and _is_blank(chars[end - 1]):
        end -= 1
    return "".join(char for char, _ in chars[start:end])


def _is_blank(char: _Char) -> bool:
    return char[0].isspace() and not char[1]
