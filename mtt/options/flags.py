"""Command lines in the syntax of Go's `flag` package, as in the original.

Pure functions from text to values. A command describes its options in a table of `Flag`s. The same
table and `set_value()` also serve the option string of SIP003 plugins.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Any, Literal, NamedTuple

from mtt.errors import UsageError

Kind = Literal["bool", "int", "duration", "str"]

# Values by option name. The type follows from the flag's kind: bool, int, float (seconds), str,
# and tuple[str, ...] for repeatable options.
Values = dict[str, Any]

BOOLEANS = {
    **dict.fromkeys(("1", "t", "T", "true", "TRUE", "True"), True),
    **dict.fromkeys(("0", "f", "F", "false", "FALSE", "False"), False),
}

# Unlike in Python's base-0 integers, a plain leading zero means octal.
_OCTAL = re.compile(r"^[+-]?0(?=[0-7_])")

_DURATION_PART = re.compile(r"([0-9]*)(?:\.([0-9]*))?([a-z\u00b5\u03bc]+)")
_NANOSECONDS = {
    "ns": 1,
    "us": 10**3,
    "\u00b5s": 10**3,  # micro sign
    "\u03bcs": 10**3,  # Greek mu
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
_DAY = {"d": 24 * 3600 * 10**9}

# Go holds integers and durations (nanoseconds, so 292 years) in 64 bits and refuses larger ones.
_INT64 = 2**63

# Significant digits of a duration's fraction: an hour has 3.6e12 nanoseconds.
_FRACTION_DIGITS = 18

# Maximum length of a value quoted in an error, which must stay one readable line.
_QUOTE_LIMIT = 80

# Placeholders of options that may be given only once.
_ADDRESSES = ("HOST:PORT", "HOST:PORT|URI", "IP:PORT", "PATH|@NAME")


class Group(Enum):
    """The headings of -h and of manual pages, in this order."""

    CONFIGURATION = "Configuration file"
    ADDRESSES = "Addresses"
    MODE = "Protocol"
    USER = "The user's address"
    REUSE = "Connection reuse"
    TRUST = "Certificates and trust"
    ACCESS = "Users and access"
    LIMITS = "Limits and timeouts"
    OBSERVE = "Logs and metrics"
    PROCESS = "Process"
    LINK = "Client configuration"
    HELP = "Help"


class Flag(NamedTuple):
    """One option of a command."""

    name: str  # without a dash
    kind: Kind
    help: str
    placeholder: str = ""  # the value in the usage text
    default: str = ""  # as written on the command line
    repeatable: bool = False  # every occurrence counts, not only the last; kind "str" only
    choices: tuple[str, ...] = ()  # the valid values; kind "str" only
    secret: bool = False  # the value is never shown in an error
    final: bool = False  # acts at once, like -h; later arguments are ignored
    may_be_empty: bool = False  # an empty value means the default; kind "str" only
    otherwise: str = ""  # the fix, for an error about a value of the wrong kind
    weakens: bool = False  # weakens security; never suggested for a misspelt option
    aliases: tuple[str, ...] = ()  # other names of the option
    group: Group | None = None  # every option of a command has one


def parse_args(flags: Sequence[Flag], argv: Iterable[str]) -> Values:
    """The options given in `argv`, which excludes the program's name.

    Options that were not given are absent, see `defaults()`. Raises UsageError.
    """
    known = by_name(flags)
    values: Values = {}
    words = iter(argv)
    for word in words:
        if word == "--":
            refuse_positional(next(words, None), values, known)
            break
        if len(word) < 2 or word[0] != "-":
            refuse_positional(word, values, known)
        name, equals, text = word[2 if word.startswith("--") else 1 :].partition("=")
        if not name or name.startswith("-"):
            raise UsageError(f"{quoted(word)} is not an option; write -name or -name=value")
        flag = known.get(name)
        if flag is None:
            value = text if equals else next(words, None)
            raise unknown_option(f"-{name}", name, value, known, dash="-")
        if not equals and flag.kind == "bool":
            text = "true"
        elif not equals:
            # The next argument is the value, even if it looks like an option, as in Go.
            following = next(words, None)
            if following is None:
                raise UsageError(f"-{name} needs a value; write -{name} {flag.placeholder}")
            text = following
        set_value(values, flag, text, label=f"-{name}")
        if flag.final:
            break
    return values


def by_name(flags: Iterable[Flag]) -> dict[str, Flag]:
    """The options by name; those with aliases occur several times."""
    return {name: flag for flag in flags for name in (flag.name, *flag.aliases)}


def refuse_positional(word: str | None, values: Values, known: Mapping[str, Flag]) -> None:
    """Raise UsageError for a positional `word`: the original silently ignores all that follows."""
    if word is None:
        return
    hint = "every option starts with a dash"
    last = next(reversed(values), "")
    if word in BOOLEANS and last and known[last].kind == "bool":
        hint = f"a boolean is written -{last} or -{last}={word}"
    raise UsageError(f"{quoted(word)} does not belong to an option; {hint}")


def unknown_option(
    label: str, name: str, value: str | None, known: Mapping[str, Flag], *, dash: str
) -> UsageError:
    """The error for an unknown option `name`, with a hint or the most similar option."""
    advice = suggestion(name, value, known, dash=dash)
    if not advice and dash:
        for flag in known.values():
            # The value may be attached to the name, as in -pPASSWORD of other programs.
            if flag.secret and name.startswith(flag.name):
                label = f"{dash}{flag.name}..."
    return UsageError(f"{clipped(label)} is not an option; {advice or '-h lists all options'}")


def suggestion(name: str, value: str | None, known: Mapping[str, Flag], *, dash: str) -> str:
    """What to write instead of the unknown option `name`; empty if there is no guess."""
    from difflib import get_close_matches

    from mtt.options.hints import hint

    same = known.get(name.lower())  # perhaps written in capitals
    if same is not None and not same.weakens:
        return f"did you mean {dash}{same.name}?"
    advice = hint(name, value, {each.name: _spelt(each, dash) for each in known.values()})
    if not advice and len(name) > 1:  # a single letter is similar to any option of two letters
        names = [each for each, flag in known.items() if not flag.weakens]
        if similar := get_close_matches(name.lower(), names, 1):
            advice = f"did you mean {dash}{known[similar[0]].name}?"
    return advice


def _spelt(flag: Flag, dash: str) -> str:
    """`flag` as written on a command line or, without a dash, in plugin options."""
    between = " " if dash else "="
    return f"{dash}{flag.name}" + (f"{between}{flag.placeholder}" if flag.placeholder else "")


def set_value(values: Values, flag: Flag, text: str, *, label: str) -> None:
    """Set `flag` in `values` to the value of `text`: the last wins, repeatable ones accumulate.

    `label` is the option's name for the user. Raises UsageError, also for a second address: the
    user may expect both to be used.
    """
    if not text and flag.kind == "str" and not flag.may_be_empty:
        # Usually an unset variable. Treating it as "not given" could weaken security.
        raise UsageError(f"{label}: the value is empty; give {flag.placeholder}, or remove it")
    try:
        value = parse_value(flag, text)
    except ValueError as error:
        shown = "the value" if flag.secret else quoted(text)
        otherwise = f"; {flag.otherwise}" if flag.otherwise else ""
        raise UsageError(f"{label}: {shown} is not {error}{otherwise}") from None
    if flag.repeatable:
        value = (*values.get(flag.name, ()), *value)
    elif flag.placeholder in _ADDRESSES and values.get(flag.name, value) != value:
        join = ", or join hosts: HOST|HOST:PORT" if "HOST" in flag.placeholder else ""
        raise UsageError(f"{label} is given twice; remove one{join}")
    # Removed first, so that the option set last is the last in the dict.
    values.pop(flag.name, None)
    values[flag.name] = value


def parse_value(flag: Flag, text: str) -> Any:
    """The value of `text` for `flag`. Raises ValueError with a text that follows "is not"."""
    match flag.kind:
        case "bool":
            if text not in BOOLEANS:
                raise ValueError("a boolean; write true or false")
            return BOOLEANS[text]
        case "int":
            return parse_int(text)
        case "duration":
            return parse_duration(text)
        case "str":
            if flag.choices and text not in flag.choices:
                raise ValueError("one of " + ", ".join(flag.choices))
            return (text,) if flag.repeatable else text


def defaults(flags: Iterable[Flag]) -> Values:
    """The default of every option: false, 0 or empty if the flag has none."""
    empty = {"bool": False, "int": 0, "duration": 0.0, "str": ""}
    return {
        flag.name: parse_value(flag, flag.default)
        if flag.default
        else (() if flag.repeatable else empty[flag.kind])
        for flag in flags
    }


def parse_int(text: str) -> int:
    """An integer by the rules of Go's strconv.ParseInt, base 0: `4`, `0x10`, `0b1`, `017`, `1_0`.

    Raises ValueError.
    """
    wrong = ValueError("an integer; write it like 4")
    if not text.isascii() or text != text.strip():
        raise wrong
    try:
        number = int(_OCTAL.sub(r"\g<0>o", text), 0)
    except ValueError:  # also for thousands of digits: Python's own limit
        raise wrong from None
    if not -_INT64 <= number < _INT64:
        raise wrong
    return number


def parse_duration(text: str, *, days: bool = False) -> float:
    """Seconds of a duration by the rules of Go's time.ParseDuration: `300ms`, `1.5h`, `1h30m`.

    With `days`, also `1d`, as in sing-box files. Negative durations are valid here. Raises
    ValueError.
    """
    units = _NANOSECONDS | _DAY if days else _NANOSECONDS
    sign, rest = (text[:1], text[1:]) if text[:1] in ("+", "-") else ("", text)
    wrong = ValueError("a duration; write it with a unit, like 300s, 5m or 1h30m")
    if rest == "0":
        return 0.0
    total = position = 0
    while position < len(rest):
        part = _DURATION_PART.match(rest, position)
        if part is None or part[3] not in units or not (part[1] or part[2]):
            raise wrong
        unit, fraction = units[part[3]], (part[2] or "")[:_FRACTION_DIGITS]
        try:
            total += int(part[1] or 0) * unit
            total += int(fraction or 0) * unit // 10 ** len(fraction)
        except ValueError:  # thousands of digits: Python's own limit
            raise wrong from None
        position = part.end()
    if position == 0 or total >= _INT64:
        raise wrong
    return (-total if sign == "-" else total) / 10**9


def quoted(text: str) -> str:
    """`text` in quotes for an error line, shortened if very long."""
    return repr(clipped(text))


def clipped(text: str) -> str:
    """`text`, shortened if very long."""
    return text if len(text) <= _QUOTE_LIMIT else text[:_QUOTE_LIMIT] + "..."
