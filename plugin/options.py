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
from mtt.options.flags import Flag, Values, by_name, clipped, set_value, unknown_option

# Shadowsocks for Android adds this key, with or without a value. It means `V`.
ANDROID_VPN = "__android_vpn"
VPN_OPTION = "V"

_KEY = re.compile(r"[A-Za-z0-9_,=-]{1,30}")

# Text is made of units: an ordinary character, or a backslash and the character that it escapes.
_WHOLE = re.compile(r"(?:\\.|[^\\])*", re.DOTALL)
_PIECE = re.compile(r"(?:\\.|[^\\;])+", re.DOTALL)
_TRIMMED = re.compile(r"\s*((?:\s*(?:\\.|[^\\\s]))*)", re.DOTALL)


def parse_options(flags: Sequence[Flag], text: str) -> Values:
    """The options in SS_PLUGIN_OPTIONS, in the form of `parse_args`.

    The last of equal keys wins, as on the command line. Raises UsageError with the key.
    """
    # Options that print something and exit, such as -h, are useless here.
    known = by_name(flag for flag in flags if not flag.final)
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
    if not _WHOLE.fullmatch(text):
        raise UsageError(
            "plugin options end with a lone backslash; write a backslash itself as \\\\"
        )
    for piece in _PIECE.findall(text):
        head, comma, rest = _partition(piece, ",")
        while comma and head in booleans:  # any other comma is an ordinary character of a value
            yield head, None
            piece = rest
            head, comma, rest = _partition(piece, ",")
        key, equals, value = _partition(piece, "=")
        if equals:
            yield key, _plain(value)
        elif key:
            yield key, None


def _partition(text: str, separator: str) -> tuple[str, str, str]:
    """As `str.partition` at the first unescaped `separator`; the first part is plain."""
    match = re.match(rf"(?:\\.|[^\\{separator}])*", text, re.DOTALL)
    assert match is not None
    end = match.end()
    return _plain(text[:end]), text[end : end + 1], text[end + 1 :]


def _plain(text: str) -> str:
    """The text without escapes, and without unescaped surrounding spaces."""
    match = _TRIMMED.match(text)
    assert match is not None
    return re.sub(r"\\(.)", r"\1", match[1], flags=re.DOTALL)
