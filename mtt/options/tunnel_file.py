"""The configuration file of -config: one tunnel, or several in one process.

    top level   options of the process, and defaults for all tunnels
    tunnel      a list of objects, one per tunnel ([[tunnel]] in TOML), with its options and
                optionally a name; without the list, the file has one tunnel

Keys are the names of options, without the dash. A tunnel's key overrides the default, and the
command line overrides both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import NamedTuple, NoReturn

from mtt.errors import MttError, UsageError
from mtt.files import warn_if_open
from mtt.options.common import MAX_CONNS, METRICS
from mtt.options.flags import Flag, Group, Values, by_name, clipped, set_value, suggestion
from mtt.options.process import CHECK, CONFIG, PROCESS_FLAGS, WORKERS, process_options
from mtt.options.section import Section
from mtt.options.tree import read_tree

# The value under which `with_tunnels()` passes on the file's tunnels: a TunnelFile.
TUNNELS = "tunnels"

LIST, NAME = "tunnel", "name"

# Tunnels of one process. Each has listening sockets, and the check compares each with all others.
MAX_TUNNELS = 1000
# Characters of a name, which appears in log lines and metrics.
MAX_NAME = 64

# Go's range of integers.
_MAX_INT = 2**63 - 1

# Characters of a variable's value that are recognised in an error that shortens the value.
_MIN_PART = 16
# Shorter values are not secrets, and occur in errors by chance.
_MIN_SECRET = 4

_OF_PROCESS = {flag.name for flag in PROCESS_FLAGS} | {CONFIG.name, METRICS.name}
_NO_KEYS = {CONFIG.name, CHECK.name}

# Options that exclude each other: one replaces the other one of a lower rank.
_ALTERNATIVES = (
    ("b", "bind-unix"),
    ("p", "password-file"),
    ("cert", "cert-dir"),
    ("key", "cert-dir"),
    ("log-level", "verbose"),
)

Complete = Callable[[Values, Mapping[str, str]], Values]


class TunnelValues(NamedTuple):
    """The options of one tunnel."""

    name: str  # empty without one
    place: str  # in the file, for errors: tunnel[1] "home"; empty if it is the whole file
    values: Values  # common ones and those of the command line included


class TunnelFile(NamedTuple):
    """The content of a file; the options of the process are apart."""

    label: str  # "-config: FILE"
    tunnels: tuple[TunnelValues, ...]
    variables: Mapping[str, str]  # of the environment, with their values, which may be secrets

    @contextlib.contextmanager
    def errors(self, place: str = "", *, names_file: bool = True) -> Iterator[None]:
        """Adds the file and the `place` to errors, and hides the values of variables in them."""
        try:
            yield
        except MttError as error:
            parts = (self.label if names_file else "", place, hidden(str(error), self.variables))
            raise type(error)(": ".join(part for part in parts if part)) from error.__cause__


def with_tunnels(
    flags: Sequence[Flag],
    given: Values,
    environ: Mapping[str, str],
    complete: Complete | None = None,
    own: Collection[str] = (),
) -> Values:
    """The options of the process, with the tunnels of the file of -config under TUNNELS.

    Args:
        flags: the command's options.
        given: those of the command line, which override the file.
        environ: variables for `${NAME}` in the file.
        complete: adds options to those of a tunnel.
        own: options of each tunnel that are otherwise options of the process.

    Raises UsageError.
    """
    path: str = given[CONFIG.name]
    top = read_tree(f"-{CONFIG.name}", path, environ)
    file = TunnelFile(top.label(), (), top.variables())
    try:
        process, tunnels = _read(flags, top, given, _OF_PROCESS - set(own))
    except UsageError as error:
        # Not in the file's own path, in which $HOME may occur.
        text = hidden(str(error).removeprefix(file.label), file.variables)
        raise UsageError(f"{file.label}{text}") from None
    with file.errors():
        process_options(process)
    if complete is not None:
        for at, each in enumerate(tunnels):
            with file.errors(each.place):
                tunnels[at] = each._replace(values=complete(each.values, environ))
    return process | {TUNNELS: file._replace(tunnels=tuple(tunnels))}


def hidden(text: str, variables: Mapping[str, str]) -> str:
    """`text` with names instead of the values of `variables`, which may be secrets."""
    for name, value in variables.items():
        for shown in (value, repr(value)[1:-1]):
            for size in (len(shown), *range(len(shown) - 1, _MIN_PART, -1)):
                if size >= _MIN_SECRET and shown[:size] in text:
                    text = text.replace(shown[:size], f"${{{name}}}")
                    break
    return text


def _read(
    flags: Sequence[Flag], top: Section, given: Values, of_process: Collection[str]
) -> tuple[Values, list[TunnelValues]]:
    """The options of the process, and the tunnels."""
    known = by_name(
        flag for flag in flags
        if not flag.final and flag.name not in _NO_KEYS and flag.group is not Group.LINK
    )  # fmt: skip
    path: str = given[CONFIG.name]
    sections = top.sections(
        LIST, otherwise="not a list of objects; write [[tunnel]] in TOML, [{...}] in JSON"
    )
    if top.has(LIST) and not sections:
        top.fail(LIST, "an empty list; describe a tunnel, or remove it")
    if len(sections) > MAX_TUNNELS:
        top.fail(LIST, f"{len(sections)} tunnels are too many; {MAX_TUNNELS} at most")
    whole = [*of_process, MAX_CONNS.name]
    everything = _ranked(_values(top, known, {LIST}), given)
    process = {name: value for name, value in everything.items() if name in whole}
    common = {name: value for name, value in everything.items() if name not in whole}
    # Values that the options of a tunnel depend on.
    common |= {key: everything[key] for key in (CHECK.name, WORKERS.name) if key in everything}
    override = {name: value for name, value in given.items() if name not in whole}
    open_secrets = _has_secrets(top, known)
    tunnels: list[TunnelValues] = []
    places: dict[str, str] = {}  # by name
    for number, section in enumerate(sections):
        place = f"{LIST}[{number}]"
        name = section.text(NAME)
        if name:
            if len(name) > MAX_NAME or not name.isprintable() or '"' in name:
                section.fail(NAME, f"write up to {MAX_NAME} printable characters, without quotes")
            place += f' "{name}"'
            if name in places:
                section.fail(NAME, f'"{name}" is the name of {places[name]}, too; change one')
            places[name] = f"{LIST}[{number}]"
        section = section.titled(place)
        values = _values(section, known, {NAME})
        for key in values:
            if key in of_process:
                section.fail(key, "a setting of the whole process; move it to the top of the file")
        values = _ranked(_ranked(common, values), override)
        tunnels.append(TunnelValues(name, place, values))
        open_secrets = open_secrets or _has_secrets(section, known)
    if open_secrets:
        warn_if_open(f"-{CONFIG.name}", path)
    return process, tunnels or [TunnelValues("", "", common)]


def _ranked(lower: Values, higher: Values) -> Values:
    """The options of both; the `higher` ones replace the same, and those that they exclude."""
    excluded = {
        one
        for pair in _ALTERNATIVES
        for one, other in (pair, pair[::-1])
        if other in higher and one not in higher
    }
    return {name: value for name, value in lower.items() if name not in excluded} | higher


def _values(section: Section, known: Mapping[str, Flag], others: set[str]) -> Values:
    """The options in `section`, which may also have the keys `others`."""
    values: Values = {}
    for key in section.names():
        if key in others:
            continue
        flag = known.get(key)
        if flag is None:
            _unknown(section, key, known, others)
        if flag.name in values:
            section.fail(key, f"the same as {flag.name}; remove one")
        match flag.kind:
            case "bool":
                values[flag.name] = section.boolean(key)
            case "int":
                values[flag.name] = section.number(key, least=-_MAX_INT - 1, most=_MAX_INT)
            case _:
                texts = section.texts(key) if flag.repeatable else (section.text(key),)
                for text in texts:
                    set_value(values, flag, text, label=section.label(key))
    return values


def _unknown(
    section: Section, key: str, known: Mapping[str, Flag], others: set[str]
) -> NoReturn:
    from difflib import get_close_matches  # slow to import and rarely needed

    if key in _NO_KEYS:
        section.fail(key, "only for the command line; remove it")
    if similar := get_close_matches(key.lower(), others, 1):
        advice = f"did you mean {similar[0]}?"
    else:
        advice = suggestion(key.removeprefix("-"), None, known, dash="")
    raise UsageError(
        f'{section.label()}: unknown key "{clipped(key)}"; '
        f"{advice or '-h lists the options, which are the keys'}"
    )


def _has_secrets(section: Section, known: Mapping[str, Flag]) -> bool:
    return any(known[key].secret and section.is_literal(key) for key in section.names()
               if key in known)  # fmt: skip
