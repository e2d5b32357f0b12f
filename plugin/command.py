"""What the commands have in common: from the command line and environment to a running service.

A command that is no SIP003 plugin uses it too and leaves out `addresses`.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from mtt import __version__
from mtt.errors import MttError, UsageError
from mtt.options.flags import Flag, Values, parse_args, usage
from mtt.options.process import ProcessOptions, process_options
from plugin import early
from plugin.environment import PluginEnvironment, read_environment
from plugin.options import parse_options

# Shadowsocks-libev uses our port without waiting for it: what is imported here and by the
# commands is in the way of -h, of errors and of listening. asyncio comes with the service.
if TYPE_CHECKING:
    from mtt.process.runtime import Service
    from mtt.process.systemd import Inherited

EXIT_FAILURE = 1
EXIT_USAGE = 2


class Start(NamedTuple):
    """How a command was started."""

    plugin: bool = False  # by shadowsocks
    sockets: tuple[Inherited, ...] = ()  # by systemd, with these to listen on

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Those of all sockets, whatever their names."""
        return tuple(each.descriptor for each in self.sockets)


class Command(NamedTuple):
    """One of our programs."""

    name: str
    description: str  # for the usage text
    flags: Sequence[Flag]
    # Builds the service from the options given. Raises MttError.
    service: Callable[[Values, Start], Service]
    # Options that stand for the addresses shadowsocks gave. None: not a plugin.
    addresses: Callable[[PluginEnvironment], Values] | None = None


def main(
    command: Command, argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None
) -> int:
    """Run `command` until a signal ends it; returns an exit code if it comes to nothing.

    `argv` starts behind the program's name; it and `environ` are this process's by default.
    """
    process = ProcessOptions()
    if environ is None:
        environ = os.environ
    try:
        values, plugin = given_options(command, sys.argv[1:] if argv is None else argv, environ)
        if values.get("h") or values.get("help"):
            return _print(usage(command.flags, command.name, command.description))
        if values.get("version"):
            return _print(f"{command.name} {__version__}\n")
        process = process_options(values)
        if plugin:
            return _serve_shadowsocks(command, values, process, early.PARENT)
        return _serve(command, values, process, environ)
    except KeyboardInterrupt:
        return 0  # Ctrl-C before the service took care of it
    except UsageError as error:
        return _fail(command, process, str(error), EXIT_USAGE)
    except MttError as error:
        return _fail(command, process, str(error), EXIT_FAILURE)
    except Exception as error:
        if process.log_level == "debug":
            raise
        text = f"{type(error).__name__}: {error} (internal error; -verbose shows where)"
        return _fail(command, process, text, EXIT_FAILURE)


def given_options(
    command: Command, argv: Sequence[str], environ: Mapping[str, str]
) -> tuple[Values, bool]:
    """The options `command` was given by whatever way, and whether it runs as a plugin.

    In a plugin the option string ranks above the command line, where old versions of shadowsocks
    put `--fast-open` or `-V` and new ones what their `plugin_args` say; the addresses in the
    environment come last. Raises UsageError.
    """
    values = parse_args(command.flags, argv)
    final = any(flag.final and flag.name in values for flag in command.flags)
    if command.addresses is None or final:
        return values, False
    shadowsocks = read_environment(environ)
    if shadowsocks is None:
        return values, False
    values |= parse_options(command.flags, shadowsocks.options)
    addresses = command.addresses(shadowsocks)
    if values.get("bind-unix"):
        # There is always an address in the environment; only -b itself contradicts -bind-unix.
        addresses.pop("b", None)
    return addresses | values, True


def _serve(
    command: Command, values: Values, process: ProcessOptions, environ: Mapping[str, str]
) -> int:
    """Run `command` by itself, maybe for systemd."""
    from mtt import log
    from mtt.process.systemd import ServiceManager, inherited_sockets

    log.setup(process.log_level, command.name, process.log_format)
    service = command.service(values, Start(sockets=inherited_sockets(environ)))

    manager = ServiceManager(environ)
    if process.workers > 1:
        from mtt.process import workers

        return workers.run(service, options=process, name=command.name, manager=manager)

    from mtt.process import runtime

    return runtime.run(service, options=process, manager=manager)


def _serve_shadowsocks(
    command: Command, values: Values, process: ProcessOptions, parent: int
) -> int:
    """Run `command` as a plugin. What systemd may have told shadowsocks is not meant for us."""
    from mtt import log

    log.setup(process.log_level, command.name, process.log_format)
    service = command.service(values, Start(plugin=True))

    if process.workers > 1:
        from mtt.process import workers

        return workers.run(service, options=process, name=command.name, parent=parent)

    from mtt.process import runtime
    from plugin.lifecycle import ParentWatch

    def watch(end: Callable[[], object]) -> None:
        ParentWatch(parent, end)  # the loop keeps it

    return runtime.run(service, options=process, plugin=True, watch=watch)


def _fail(command: Command, process: ProcessOptions, text: str, code: int) -> int:
    from mtt import log

    if process.log_format == "json":
        log.setup(process.log_level, command.name, process.log_format)
        log.logger.error("%s", text)
    else:
        log.write_line(f"{command.name}: {text}")
    return code


def _print(text: str) -> int:
    if sys.stdout is None:  # closed before we were started
        return EXIT_FAILURE
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        # Python would complain once more at its exit.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        # The reader, `head` perhaps, has seen enough; a full disk has not.
        return 0 if isinstance(error, BrokenPipeError) else EXIT_FAILURE
    return 0
