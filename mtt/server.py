"""The server: accepts tunnels and relays them to its destination."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mtt.address import Endpoint
from mtt.modes import MODES, describe_mode
from mtt.net.resolve import Resolver
from mtt.options.tunnel import ServerOptions
from mtt.udp.server import DatagramServer
from mtt.wire.http1 import Reply, Request
from mtt.wire.servemux import ServeMux

if TYPE_CHECKING:
    from mtt.inbound.front import HeadReader


class Server(DatagramServer):
    """mtt-server: `start()` listens, `close()` ends everything.

    Raises UsageError when the certificate is unusable.
    """

    def __init__(self, options: ServerOptions) -> None:
        alpn = MODES[options.mode].server_alpn
        tls = replace(options.tls, alpn=alpn) if options.tls is not None else None
        super().__init__(options, Resolver(), tls)
        self._options = options
        self._paths = ServeMux(options.wss_path)

    def _reader(self) -> HeadReader[Endpoint, Any]:
        return MODES[self._options.mode].reader(self._options, self)

    async def start(self) -> None:
        """Start listening. Raises StartError."""
        await self.serve(lambda: self._frontend.accept())
        self.follow()

    def _description(self) -> str:
        options = self._options
        mode = describe_mode(options.mode, tls=options.tls is not None, udp=options.udp_time > 0)
        return f"{mode}, for {options.destination}"

    # Called by the reader of connection heads.

    def route(self, request: Request) -> Endpoint | Reply:
        return self._paths.route(request) or self._options.destination
