"""The common part of all commands: from command line and environment to a running service."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

from mtt.errors import MttError, UsageError
from mtt.options.flags import Flag, Group, Values, parse_args
from mtt.options.process import CHECK, CONFIG, ProcessOptions, process_options
from mtt.version import __version__

# Shadowsocks-libev connects to a plugin's port without waiting for it. Imports here and in the
# commands delay -h, errors and listening, so asyncio is imported with the service.
if TYPE_CHECKING:
    from mtt.options.common import ServiceOptions
    from mtt.options.links import Link, Login
    from mtt.process.runtime import Service
    from mtt.process.systemd import Inherited

EXIT_FAILURE = 1
EXIT_USAGE = 2


class Start(NamedTuple):
    """How a command was started."""

    plugin: bool = False  # as a plugin, by its parent program
    sockets: tuple[Inherited, ...] = ()  # by systemd, with these to listen on
    # Reads the file of `Command.complete` again, and returns all options. Raises UsageError.
    reread: Callable[[], Values] | None = None

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The descriptors of all sockets, whatever their names."""
        return tuple(each.descriptor for each in self.sockets)


class Prepared(NamedTuple):
    """A service with its options checked."""

    options: ServiceOptions  # equal options make equal services
    make: Callable[[], Service]  # Raises MttError.
    alone: tuple[str, ...] = ()  # addresses and files that no other service can share


# Checks given options. Raises UsageError.
Prepare = Callable[[Values, Start], Prepared]
# Adds options to the given ones, from those and the environment. Raises UsageError.
Complete = Callable[[Values, Mapping[str, str]], Values]


class Plugin(Protocol):
    """Runs a command as the plugin of another program, which starts and ends it."""

    @property
    def parent(self) -> int:
        """The process of that program."""

    def options(
        self, flags: Sequence[Flag], given: Values, environ: Mapping[str, str]
    ) -> Values | None:
        """The options `given` on the command line, combined with those in `environ`.

        None if no such program started this process. Raises UsageError.
        """

    def watch(self, end: Callable[[], object]) -> None:
        """Call `end` in the running loop once `parent` is gone."""


class Command(NamedTuple):
    """The definition of a command."""

    name: str
    description: str  # for the usage text
    flags: Sequence[Flag]
    # Builds the service from the given options. Raises MttError.
    service: Callable[[Values, Start], Service]
    plugin: Plugin | None = None
    summary: str = ""  # what it is, for the title of its manual page
    # Examples: a description and a command line each.
    examples: Sequence[tuple[str, str]] = ()
    # Adds the options in a file that the given ones name, to these and those of the environment.
    # Raises UsageError.
    complete: Complete | None = None
    # Makes the output of -link, if the command has it. Raises MttError.
    links: Callable[[Values, Login | None], Sequence[Link]] | None = None


def main(command: Command, argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run `command` until a signal ends it; returns an exit code. `argv` excludes its name."""
    process = ProcessOptions()
    values: Values = {}
    try:
        values, plugin = given_options(command, argv, environ)
        if values.get("h"):
            from mtt.options.usage import usage

            text = usage(command.flags, command.name, command.description, command.examples)
            return _print(text)
        if values.get("version"):
            return _print(f"{command.name} {__version__}\n")
        process = process_options(values)
        _set_up_log(command, process)
        reread = None
        given = values
        of_links = {flag.name for flag in command.flags if flag.group is Group.LINK}
        if command.complete is not None:
            reread = partial(command.complete, values, environ)
            values = reread()
            process = process_options(values)
            _set_up_log(command, process)
        if command.links is not None and of_links & given.keys():
            from mtt.process.link_output import printed

            return _print(printed(command.links, given, values, environ))
        return _serve(command, values, process, environ, plugin, reread)
    except KeyboardInterrupt:
        return 0  # Ctrl-C before the service handled signals
    except UsageError as error:
        code = EXIT_FAILURE if values.get("check") else EXIT_USAGE
        return _fail(command, process, str(error), code)
    except MttError as error:
        return _fail(command, process, str(error), EXIT_FAILURE)
    except Exception as error:
        if process.log_level == "debug":
            raise
        text = f"{type(error).__name__}: {error} (internal error; -verbose shows where)"
        return _fail(command, process, text, EXIT_FAILURE)


def completed(
    flags: Sequence[Flag], complete: Complete | None = None, *, own: Collection[str] = ()
) -> Complete:
    """`Command.complete` of a command with -config, see `with_tunnels()`."""

    def with_file(given: Values, environ: Mapping[str, str]) -> Values:
        if CONFIG.name in given:
            from mtt.options.tunnel_file import with_tunnels

            return with_tunnels(flags, given, environ, complete, own)
        return given if complete is None else complete(given, environ)

    return with_file


def given_options(
    command: Command, argv: Sequence[str], environ: Mapping[str, str]
) -> tuple[Values, Plugin | None]:
    """The options from all sources, and the `Plugin` if it runs as one. Raises UsageError."""
    values = parse_args(command.flags, argv)
    final = any(flag.final and flag.name in values for flag in command.flags)
    if command.plugin is not None and not final:
        # A plugin has to serve, not to print something and exit.
        flags = [
            flag for flag in command.flags if flag is not CHECK and flag.group is not Group.LINK
        ]
        options = command.plugin.options(flags, values, environ)
        if options is not None:
            return options, command.plugin
    return values, None


def _serve(
    command: Command,
    values: Values,
    process: ProcessOptions,
    environ: Mapping[str, str],
    plugin: Plugin | None,
    reread: Callable[[], Values] | None,
) -> int:
    """Run `command`: as a plugin, or standalone, possibly under systemd."""
    from mtt.process.systemd import ServiceManager, inherited_sockets
    from mtt.trust import child

    child.allow()  # affects the whole process, so a program that embeds a service decides itself

    # A plugin ignores systemd's variables, which are for its parent.
    is_plugin = plugin is not None
    sockets = () if is_plugin else inherited_sockets(environ)
    service = command.service(values, Start(is_plugin, sockets, reread))
    if values.get("check"):
        return _print(f"{command.name}: the configuration is usable\n")
    manager = None if is_plugin else ServiceManager(environ)
    if process.workers > 1:
        from mtt.process import workers

        parent = None if plugin is None else plugin.parent
        return workers.Supervisor(
            service, options=process, name=command.name, manager=manager, parent=parent
        ).run()

    from mtt.process import runtime

    watch = None if plugin is None else plugin.watch
    return runtime.run(service, options=process, plugin=is_plugin, watch=watch, manager=manager)


def _set_up_log(command: Command, process: ProcessOptions) -> None:
    from mtt import log

    # Affects the whole process, so a program that embeds a service decides for itself.
    log.setup(process.log_level, command.name, process.log_format)


def _fail(command: Command, process: ProcessOptions, text: str, code: int) -> int:
    from mtt import log

    if process.log_format == "json":
        _set_up_log(command, process)
        log.logger.error("%s", text)
    else:
        log.write_line(f"{command.name}: {text}")
    return code


def _print(text: str) -> int:
    if sys.stdout is None:  # closed before this process was started
        return EXIT_FAILURE
    try:
        # In UTF-8, whatever the locale; bytes of the command line as they were.
        sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape"))
        sys.stdout.flush()
    except OSError as error:
        # Otherwise Python reports the error again at exit.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        # A broken pipe (`head`, for example) is a success; a full disk is not.
        return 0 if isinstance(error, BrokenPipeError) else EXIT_FAILURE
    return 0
