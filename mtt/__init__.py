"""The engine of mos-tls-tunnel: wire formats, transport layers, relay, client and server.

Programs that embed the tunnel need only the names here, see docs/embedding.md. Each is imported on
first use.
"""

from mtt.version import __version__

__all__ = ["Client", "MttError", "Server", "StartError", "UsageError", "__version__"]

# As typing.TYPE_CHECKING. Importing typing takes 10 ms, in which Ctrl-C would show a traceback:
# `mtt.process.early` comes after this module.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from mtt.api import Client, Server
    from mtt.errors import MttError, StartError, UsageError
else:

    def __getattr__(name):
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from mtt import api, errors

        return getattr(errors if name.endswith("Error") else api, name)
