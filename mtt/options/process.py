"""The options of every command about its process: logging, event loop, workers, shutdown."""

from __future__ import annotations

import os
from typing import NamedTuple

from mtt.errors import UsageError
from mtt.options.flags import Flag, Group, Values, defaults, parse_duration

DEFAULT_GRACE = "10s"
LOG_FORMATS = ("text", "json")
LOG_LEVELS = ("error", "warning", "info", "debug")
LOOPS = ("auto", "asyncio", "uvloop")

GRACE = Flag("grace", "duration", "Time for open tunnels to finish after SIGTERM or SIGINT; 0 cuts "
             "them at once, and so does a second signal.",
             "DURATION", DEFAULT_GRACE, group=Group.PROCESS)
LOG = Flag("log", "str", "Log format: lines of text, or one JSON object per line.", "text|json",
           LOG_FORMATS[0], choices=LOG_FORMATS, group=Group.OBSERVE)
LOG_LEVEL = Flag("log-level", "str", "Least severe level to log.", "|".join(LOG_LEVELS),
                 "info", choices=LOG_LEVELS, group=Group.OBSERVE)
LOOP = Flag("loop", "str", "Event loop; auto uses uvloop if it is installed, else asyncio.",
            "|".join(LOOPS), LOOPS[0], choices=LOOPS, group=Group.PROCESS)
VERBOSE = Flag("verbose", "bool", "Also log each connection that opens or closes. Same as "
               "-log-level debug.", group=Group.OBSERVE)
CONFIG = Flag("config", "str", "Configuration file with these options for one tunnel or several: "
              "TOML (.toml), JSON (.json) or YAML (.yaml, .yml). The command line overrides it.",
              "FILE", group=Group.CONFIGURATION)
CHECK = Flag("check", "bool", "Check the configuration and exit, with code 0 if it is usable, "
             "else 1.", group=Group.CONFIGURATION)
VERSION = Flag("version", "bool", "Print the version and exit.", final=True, group=Group.HELP)
HELP = Flag("h", "bool", "Print this help and exit.", final=True, aliases=("help",),
            group=Group.HELP)

WORKERS = Flag("workers", "int", "Number of worker processes; 0 means one per core. -max-conns is "
               "divided among them.", "N", "1", group=Group.PROCESS)

# A larger number is a typing error: the largest machines have some hundred cores.
MAX_WORKERS = 1024

# The last options in every command's table, see `process_flags()`.
PROCESS_FLAGS = (CHECK, GRACE, WORKERS, LOOP, LOG, LOG_LEVEL, VERBOSE, VERSION, HELP)


def process_flags(*, client: bool = False, plugin: bool = False) -> tuple[Flag, ...]:
    """PROCESS_FLAGS, with notes for clients, and for commands that can be plugins."""
    check, grace, workers, *others = PROCESS_FLAGS
    if plugin:
        grace = grace._replace(help=f"{grace.help} Plugins never wait.")
    if client:
        text = f"{workers.help} Each has its own connections to the server."
        workers = workers._replace(help=text)
    return check, grace, workers, *others


class ProcessOptions(NamedTuple):
    """The checked options about the process."""

    grace: float = parse_duration(DEFAULT_GRACE)  # seconds
    loop: str = LOOPS[0]  # one of LOOPS
    log_format: str = LOG_FORMATS[0]  # one of LOG_FORMATS
    log_level: str = "info"  # one of LOG_LEVELS
    workers: int = 1  # processes


def process_options(given: Values) -> ProcessOptions:
    """The options about the process, from those `given` to a command. Raises UsageError."""
    values = defaults(PROCESS_FLAGS) | given
    grace: float = values["grace"]
    if grace < 0:
        raise UsageError(f"-grace: {grace:g}s is negative; 0 cuts all tunnels at once")
    level: str = values["log-level"]
    if values["verbose"]:
        if given.get("log-level", "debug") != "debug":
            raise UsageError(f"-verbose is -log-level debug, not {level}; drop one")
        level = "debug"
    return ProcessOptions(grace, values["loop"], values["log"], level, workers(values))


def workers(values: Values) -> int:
    """The number of worker processes. Raises UsageError."""
    count: int = values["workers"]
    if not 0 <= count <= MAX_WORKERS:
        raise UsageError(f"-workers: {count} is not from 0 to {MAX_WORKERS}")
    if count == 0:
        # taskset and containers can restrict which cores a process may use.
        may_ask = hasattr(os, "sched_getaffinity")
        count = len(os.sched_getaffinity(0)) if may_ask else os.cpu_count() or 1
    if count > 1 and not hasattr(os, "fork"):
        raise UsageError("-workers: this system cannot fork processes; remove it, or set it to 1")
    return count


def part_of(total: int, values: Values) -> int:
    """Each worker's share of the limit `total`, rounded up; 0 (no limit) stays 0."""
    return -(-total // workers(values))
