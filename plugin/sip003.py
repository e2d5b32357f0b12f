"""Runs a command as a plugin of shadowsocks (SIP003): the sources of its options, and its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from mtt.address import Endpoint, endpoint
from mtt.errors import UsageError
from mtt.options.flags import Flag, Values
from mtt.process.early import PARENT
from plugin.options import parse_options

LOCAL = ("SS_LOCAL_HOST", "SS_LOCAL_PORT")
REMOTE = ("SS_REMOTE_HOST", "SS_REMOTE_PORT")
OPTIONS = "SS_PLUGIN_OPTIONS"


class PluginEnvironment(NamedTuple):
    """The values of the environment variables.

    On the client the plugin listens on `local` and connects to `remote`; on the server it
    listens on `remote` and connects to `local`, which is shadowsocks itself.
    """

    local: Endpoint
    remote: Endpoint
    options: str  # unparsed


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
        from plugin.lifecycle import watch_parent

        watch_parent(self.parent, end)


def read_environment(environ: Mapping[str, str]) -> PluginEnvironment | None:
    """The plugin's variables in `environ`; None if shadowsocks did not start this process.

    Raises UsageError if only some of the variables are set, or one is invalid: a single variable
    already means that a plugin is wanted, and its addresses must not be guessed.
    """
    names = (*REMOTE, *LOCAL)
    if not any(name in environ for name in (*names, OPTIONS)):
        return None
    if missing := [name for name in names if not environ.get(name)]:
        raise UsageError(
            f"started as a plugin without {', '.join(missing)}; "
            "shadowsocks sets all of SS_REMOTE_HOST, SS_REMOTE_PORT, SS_LOCAL_HOST, SS_LOCAL_PORT "
            "(to run without shadowsocks, unset all SS_ variables)"
        )
    return PluginEnvironment(
        _endpoint(environ, LOCAL), _endpoint(environ, REMOTE), environ.get(OPTIONS, "")
    )


def _endpoint(environ: Mapping[str, str], names: tuple[str, str]) -> Endpoint:
    host, port = (environ[name] for name in names)
    try:
        return endpoint(host, port)
    except ValueError as error:
        raise UsageError(f"{' and '.join(names)} are not an address: {error}") from None
