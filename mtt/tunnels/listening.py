"""The listening sockets of a service, exclusive or shared with other workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mtt.address import Endpoint
from mtt.net.listen import Listener, bind
from mtt.net.resolve import Resolver


class Listening:
    """The listening sockets of a service. For the arguments see `mtt.net.listen.bind`."""

    def __init__(
        self,
        endpoint: Endpoint | None,
        unix_path: str = "",
        *,
        resolver: Resolver,
        descriptors: tuple[int, ...] = (),
        fast_open: bool = False,
    ) -> None:
        self._endpoint = endpoint
        self._unix_path = unix_path
        self._resolver = resolver
        self._descriptors = descriptors
        self._fast_open = fast_open
        self._listener: Listener | None = None
        self._yields: Callable[[], bool] | None = None

    @property
    def addresses(self) -> list[str]:
        """Listening addresses, with the actual port if port 0 was requested."""
        return self._listener.addresses if self._listener is not None else []

    async def bind(self) -> None:
        """Bind the addresses. Raises StartError."""
        self._listener = await bind(
            self._endpoint,
            self._unix_path,
            resolver=self._resolver,
            fast_open=self._fast_open,
            descriptors=self._descriptors,
        )

    def share(self, yields: Callable[[], bool]) -> None:
        """Share the sockets with other workers.

        `yields` says whether to leave the next connection to another worker.
        """
        self._yields = yields
        if self._listener is not None:
            self._listener.disown()

    async def serve(self, accept: Callable[[], Any]) -> None:
        """Accept connections; `accept` makes their protocols. Raises StartError."""
        if self._listener is None:
            await self.bind()
        assert self._listener is not None
        self._listener.serve(accept, yields=self._yields)

    def close(self) -> None:
        """Stop listening. May be called from a signal handler, and repeatedly."""
        if self._listener is not None:
            self._listener.close()
