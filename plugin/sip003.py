"""Runs a command as a plugin of shadowsocks: the sources of its options, and its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from mtt.options.flags import Flag, Values
from mtt.process.early import PARENT
from plugin.environment import PluginEnvironment, read_environment
from plugin.options import parse_options


class Sip003(NamedTuple):
    """A `mtt.process.command.Plugin`."""

    # The options that correspond to the addresses given by shadowsocks.
    addresses: Callable[[PluginEnvironment], Values]
    parent: int = PARENT

    def options(
        self, flags: Sequence[Flag], given: Values, environ: Mapping[str, str]
    ) -> Values | None:
        """The option string overrides what was `given` on the command line, where old versions of
        shadowsocks put `--fast-open` or `-V`, and new ones their `plugin_args`. The addresses in
        the environment have the lowest priority. Raises UsageError.
        """
        shadowsocks = read_environment(environ)
        if shadowsocks is None:
            return None
        values = given | parse_options(flags, shadowsocks.options)
        addresses = self.addresses(shadowsocks)
        if values.get("bind-unix"):
            # The environment always has an address; only an explicit -b conflicts with -bind-unix.
            addresses.pop("b", None)
        return addresses | values

    def watch(self, end: Callable[[], object]) -> None:
        # Imported here for a fast start: it imports asyncio.
        from plugin.lifecycle import ParentWatch

        ParentWatch(self.parent, end)  # the loop keeps it
