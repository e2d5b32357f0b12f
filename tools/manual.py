"""Generates manual pages of all commands from the tables of options.

Run from the top directory as `python -m tools.manual OUTDIR`; writes OUTDIR/man1/NAME.1. The output
is reproducible.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from mtt.options.flags import Flag
from mtt.options.usage import folded, grouped, help_text
from mtt.process.command import Command
from mtt.version import __version__
from tools.commands import COMMANDS, write_output

PROJECT = "mos-tls-tunnel"

SYNTAX = (
    "Options are written as in Go programs: -x value or -x=value, with one dash or two. Booleans "
    "are -x or -x=true. Durations look like 300ms, 90s or 1h30m."
)

# Sections by heading: paragraphs of a term, empty for none, and a text.
_SIGNALS = (
    ("SIGTERM, SIGINT", "Stop listening, wait up to -grace for open tunnels, then exit. A second "
     "signal cuts them at once."),
    ("SIGHUP", "Reload changed certificates and other files."),
)  # fmt: skip
_EXIT = (
    ("0", "After SIGTERM or SIGINT, and after -check, -help and -version."),
    ("1", "Startup has failed, or -check has found an error."),
    ("2", "An option is wrong."),
)
_ENVIRONMENT = (
    ("LISTEN_FDS, LISTEN_PID, LISTEN_FDNAMES", "Sockets of systemd to listen on."),
    ("NOTIFY_SOCKET, WATCHDOG_USEC", "Notifications and watchdog of systemd."),
)
_PLUGIN = (
    ("SS_REMOTE_HOST, SS_REMOTE_PORT, SS_LOCAL_HOST, SS_LOCAL_PORT", "Addresses, if shadowsocks "
     "starts the command as its plugin."),
    ("SS_PLUGIN_OPTIONS", "The options of plugin_opts: those above without the dash, with "
     "semicolons between them."),
)  # fmt: skip
_PROXY = (
    ("HTTPS_PROXY, NO_PROXY", "With -proxy env: the proxy, and the servers to reach without it."),
)
_FILE = (("Any", "Values of ${NAME} in the configuration file."),)


def manual_page(command: Command) -> str:
    """The manual page of `command`, for the macros `man` of roff."""
    flags = {flag.name: flag for flag in command.flags}
    # Files of other programs, whose option has the name of theirs as well, have no such values.
    has_file = "config" in flags and not flags["config"].aliases
    environment = (
        *(_PLUGIN if command.plugin is not None else ()),
        *(_PROXY if "proxy" in flags else ()),
        *(_FILE if has_file else ()),
        *_ENVIRONMENT,
    )
    # Of the Debian package: only that installs manual pages.
    files = (
        (f"/etc/default/{command.name}", f"Options of the unit {command.name}.service."),
        (f"/usr/share/doc/{PROJECT}/docs", "Documents by task; README.md beside it lists them."),
    )
    others = [f"{_bold(name)}(1)" for name in sorted(COMMANDS) if name != command.name]
    lines = [
        f'.TH {_plain(command.name.upper())} 1 "" "{PROJECT} {__version__}" "{PROJECT}"',
        ".SH NAME",
        rf"{_plain(command.name)} \- {_plain(command.summary)}",
        ".SH SYNOPSIS",
        rf"{_bold(command.name)} [\fIoption\fR ...]",
        ".SH DESCRIPTION",
        _plain(command.description),
        ".SH OPTIONS",
        _plain(SYNTAX),
        *_options(command),
        ".SH ENVIRONMENT",
        *_terms(environment),
        ".SH FILES",
        *_terms(files),
        ".SH SIGNALS",
        *_terms(_SIGNALS),
        ".SH EXIT STATUS",
        *_terms(_EXIT),
        ".SH EXAMPLES",
        *_examples(command),
        ".SH SEE ALSO",
        ", ".join(others),
    ]
    return "\n".join(lines) + "\n"


def _options(command: Command) -> Iterator[str]:
    for heading, flags in grouped(command.flags):
        yield f".SS {_plain(heading)}"
        for flag in flags:
            yield ".TP"
            yield _label(flag)
            yield _plain(help_text(flag))


def _label(flag: Flag) -> str:
    label = ", ".join(_bold(f"-{name}") for name in (flag.name, *flag.aliases))
    return label + (rf" \fI{_plain(flag.placeholder)}\fR" if flag.placeholder else "")


def _terms(terms: tuple[tuple[str, str], ...]) -> Iterator[str]:
    for term, text in terms:
        yield ".TP"
        yield _bold(term)
        yield _plain(text)


def _examples(command: Command) -> Iterator[str]:
    for about, line in command.examples:
        yield ".PP"
        yield _plain(f"{about}:")
        yield ".PP"
        yield ".nf"
        yield ".RS 4"
        yield from map(_plain, folded(line))
        yield ".RE"
        yield ".fi"


def _bold(text: str) -> str:
    return rf"\fB{_plain(text)}\fR"


def _plain(text: str) -> str:
    """`text` for roff: nothing in it is a request or an escape, and dashes can be copied."""
    text = text.replace("\\", r"\e").replace("-", r"\-")
    return rf"\&{text}" if text.startswith((".", "'")) else text


def write_pages(directory: Path) -> None:
    """Write the pages of all commands to `directory`/man1."""
    section = directory / "man1"
    section.mkdir(parents=True, exist_ok=True)
    for name, command in COMMANDS.items():
        (section / f"{name}.1").write_text(manual_page(command), "utf-8")


if __name__ == "__main__":
    sys.exit(write_output("manual", write_pages))
