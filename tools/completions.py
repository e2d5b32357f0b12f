"""Generates completions of all commands for bash, zsh and fish from the tables of options.

Run from the top directory as `python -m tools.completions OUTDIR`; writes OUTDIR/bash/NAME,
OUTDIR/zsh/_NAME and OUTDIR/fish/NAME.fish. The output is reproducible.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

from mtt.options.flags import Flag
from mtt.process.command import Command
from tools.commands import COMMANDS, write_output

FILE, DIRECTORY = "file", "directory"

# Placeholders of options whose values are names of files.
_PATHS = {"FILE": FILE, "PATH|@NAME": FILE, "DIR": DIRECTORY}

# Characters of a description; longer ones would be cut by the shells, or fill the screen.
_ABOUT = 70

# Go's syntax: -x value, -x=value, one dash or two. bash cuts words at "=" and ":".
_BASH = r"""# bash completion for {name}

{function}() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} option=${{COMP_WORDS[COMP_CWORD - 1]}} equals=
    if [[ $word == = ]]; then
        equals=1 word=
    elif [[ $option == = ]]; then
        equals=1 option=${{COMP_WORDS[COMP_CWORD - 2]}}
    fi
    [[ $option == --* ]] && option=${{option#-}}
    COMPREPLY=()
    case $option in
{cases}
    esac
    COMPREPLY=($(compgen -W '{options}' -- "${{word/#--/-}}"))
}}

complete -F {function} {name}
"""
_BASH_FILES = """        {names})
            compopt -o filenames 2>/dev/null
            mapfile -t COMPREPLY < <(compgen -{action} -- "$word")
            return ;;"""
_BASH_WORDS = """        {names})
            COMPREPLY=($(compgen -W '{words}' -- "$word"))
            return ;;"""
_BASH_NOTHING = """        {names})
            return ;;"""
# Only with "=": otherwise the next word is another option.
_BASH_BOOLEANS = """        {names})
            if [[ $equals ]]; then
                COMPREPLY=($(compgen -W 'true false' -- "$word"))
                return
            fi ;;"""


def bash(command: Command) -> str:
    """The completion for bash; it needs nothing but bash itself."""
    flags = command.flags
    cases = [
        _BASH_FILES.format(names=_names(_with(flags, kind)), action=action)
        for kind, action in ((FILE, "f"), (DIRECTORY, "d"))
        if _with(flags, kind)
    ]
    cases += [
        _BASH_WORDS.format(names=_names([flag]), words=" ".join(flag.choices))
        for flag in flags
        if flag.choices
    ]
    others = [
        flag for flag in flags
        if flag.kind != "bool" and not flag.choices and not path_kind(flag)
    ]  # fmt: skip
    cases.append(_BASH_NOTHING.format(names=_names(others)))
    booleans = [flag for flag in flags if flag.kind == "bool"]
    cases.append(_BASH_BOOLEANS.format(names=_names(booleans)))
    return _BASH.format(
        name=command.name,
        function="_" + command.name.replace("-", "_"),
        options=" ".join(f"-{flag.name}" for flag in flags),
        cases="\n".join(cases),
    )


def zsh(command: Command) -> str:
    """The completion for zsh: a function for a directory in fpath."""
    specs = [spec for flag in command.flags for spec in _zsh_specs(flag)]
    lines = [f"#compdef {command.name}", "", "_arguments \\"]
    return "\n".join(lines) + "\n" + " \\\n".join(f"    {spec}" for spec in specs) + "\n"


def _zsh_specs(flag: Flag) -> list[str]:
    names = [f"-{name}" for name in (flag.name, *flag.aliases)]
    if flag.final:
        before = "(- *)"
    elif flag.repeatable:
        before = "*"
    else:
        before = f"({' '.join(names)})" if len(names) > 1 else ""
    about = re.sub(r"([\[\]:\\])", r"\\\1", about_of(flag))
    after = ""
    if flag.kind != "bool":
        # "=" behind the name: the value is the next word, or comes behind "=".
        label = flag.placeholder.replace("\\", "\\\\").replace(":", "\\:")
        action = {FILE: "_files", DIRECTORY: "_files -/"}.get(path_kind(flag), " ")
        if flag.choices:
            action = f"({' '.join(flag.choices)})"
        after = f":{label}:{action}"
    equals = "=" if after else ""
    return [_quoted(f"{before}{name}{equals}[{about}]{after}") for name in names]


def fish(command: Command) -> str:
    """The completion for fish."""
    lines = [f"complete -c {command.name} -f"]
    for flag in command.flags:
        names = " ".join(f"-o {name}" for name in (flag.name, *flag.aliases))
        line = f"complete -c {command.name} {names}"
        if path_kind(flag) == FILE:
            line += " -r -F"
        elif path_kind(flag) == DIRECTORY:
            line += " -x -a '(__fish_complete_directories)'"
        elif flag.choices:
            line += f" -x -a '{' '.join(flag.choices)}'"
        elif flag.kind != "bool":
            line += " -x"
        about = about_of(flag).replace("\\", "\\\\").replace("'", "\\'")
        lines.append(f"{line} -d '{about}'")
    return "\n".join(lines) + "\n"


def path_kind(flag: Flag) -> str:
    """FILE or DIRECTORY if the value is a path, else empty."""
    return _PATHS.get(flag.placeholder, "")


def about_of(flag: Flag) -> str:
    """A short description: the beginning of the help."""
    sentence = re.split(r"(?<=[^.])[.;](?: |$)", flag.help, maxsplit=1)[0]
    if not sentence.startswith("With "):  # followed by an option and a colon
        sentence = sentence.partition(": ")[0]
    if len(sentence) <= _ABOUT:
        return sentence
    return sentence[:_ABOUT].rpartition(" ")[0].rstrip(",") + "..."


def _with(flags: Iterable[Flag], kind: str) -> list[Flag]:
    return [flag for flag in flags if path_kind(flag) == kind]


def _names(flags: Iterable[Flag]) -> str:
    """The names and aliases of `flags`, as a pattern of bash."""
    return "|".join(f"-{name}" for flag in flags for name in (flag.name, *flag.aliases))


def _quoted(text: str) -> str:
    """`text` in single quotes, as in zsh and fish."""
    return "'" + text.replace("'", "'\\''") + "'"


def write_completions(directory: Path) -> None:
    """Write the completions of all commands for all shells to `directory`."""
    for shell, make, form in (
        ("bash", bash, "{}"),
        ("zsh", zsh, "_{}"),
        ("fish", fish, "{}.fish"),
    ):
        (directory / shell).mkdir(parents=True, exist_ok=True)
        for name, command in COMMANDS.items():
            (directory / shell / form.format(name)).write_text(make(command), "utf-8")


if __name__ == "__main__":
    sys.exit(write_output("completions", write_completions))
