"""Makes a command a plugin of shadowsocks: where its options come from, and when it ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from mtt.options.flags import Flag, Values
from mtt.process.early import PARENT
from plugin.environment import PluginEnvironment, read_environment
from plugin.options import parse_options


class Sip003(NamedTuple):
    """A `mtt.process.command.Plugin`."""

    # Options that stand for the addresses shadowsocks gave.
    addresses: Callable[[PluginEnvironment], Values]
    parent: int = PARENT

    def options(
        self, flags: Sequence[Flag], given: Values, environ: Mapping[str, str]
    ) -> Values | None:
        """The option string ranks above what was `given` on the command line, where old versions
        of shadowsocks put `--fast-open` or `-V` and new ones what their `plugin_args` say; the
        addresses in the environment come last. Raises UsageError.
        """
        shadowsocks = read_environment(environ)
        if shadowsocks is None:
            return None
        values = given | parse_options(flags, shadowsocks.options)
        addresses = self.addresses(shadowsocks)
        if values.get("bind-unix"):
            # There is always an address in the environment; only -b itself contradicts -bind-unix.
            addresses.pop("b", None)
        return addresses | values

    def watch(self, end: Callable[[], object]) -> None:
        # Here for the sake of start-up: it loads asyncio.
        from plugin.lifecycle import ParentWatch

        ParentWatch(self.parent, end)  # the loop keeps it
