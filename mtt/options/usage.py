"""The help text of a command: its options by group, and examples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from textwrap import fill

from mtt.options.flags import Flag, Group

_WIDTH = 79
_INDENT = 8
# Without the indent, and with a backslash at the end.
_EXAMPLE_WIDTH = _WIDTH - 8


def usage(
    flags: Sequence[Flag], prog: str, description: str, examples: Sequence[tuple[str, str]] = ()
) -> str:
    """The help text of a command, with a newline; `examples` are descriptions and command lines."""
    lines = [f"Usage: {prog} [option ...]", "", fill(description, _WIDTH)]
    for heading, members in grouped(flags):
        lines += ["", f"{heading}:"]
        for flag in members:
            names = ", ".join(f"-{name}" for name in (flag.name, *flag.aliases))
            lines += [f"  {names} {flag.placeholder}".rstrip(), _filled(help_text(flag), _INDENT)]
    if examples:
        lines += ["", "Examples:"]
        for about, line in examples:
            lines += [_filled(f"{about}:", 2), *(f"    {part}" for part in folded(line))]
    return "\n".join(lines) + "\n"


def grouped(flags: Iterable[Flag]) -> Iterator[tuple[str, list[Flag]]]:
    """The options under the headings of their groups; those without a group are last."""
    for group in (*Group, None):
        members = [flag for flag in flags if flag.group is group]
        if members:
            yield ("Other" if group is None else group.value), members


def help_text(flag: Flag) -> str:
    """What the option does, with its default."""
    notes = [f"default {flag.default}"] if flag.default else []
    notes += ["may be repeated"] if flag.repeatable else []
    return flag.help + (f" ({', '.join(notes)})" if notes else "")


def folded(line: str) -> Iterator[str]:
    """A command line, folded before options if it is long."""
    first, *rest = line.split(" -")
    piece = first
    for part in rest:
        if len(piece) + len(part) > _EXAMPLE_WIDTH:
            yield piece + " \\"
            piece = f"    -{part}"
        else:
            piece += f" -{part}"
    yield piece


def _filled(text: str, indent: int) -> str:
    space = " " * indent
    return fill(text, _WIDTH, initial_indent=space, subsequent_indent=space,
                break_on_hyphens=False)  # fmt: skip
