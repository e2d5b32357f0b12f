"""The hub of several workers: a process that collects their state and publishes it.

`MetricsHub` does so for -metrics: every worker reports its page, and the hub serves the sum.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from mtt.address import Endpoint
from mtt.net.resolve import Resolver
from mtt.observe.server import MetricsServer
from mtt.observe.sums import Page, total
from mtt.process.link import Link, Message
from mtt.process.runtime import Hub

# Seconds between a worker's reports: the maximum age of metrics. A page takes 0.1 ms to make.
REPORT_INTERVAL = 1.0


class Reporter:
    """The worker's side: sends its `page` periodically, from `connect()` to `close()`."""

    def __init__(self, page: Callable[[], str]) -> None:
        self._page = page
        self.link = Link(self.handle, self.lost)
        self._timer: asyncio.TimerHandle | None = None

    async def connect(self, hub: socket.socket) -> None:
        """Start reporting to `hub`, in the running loop."""
        self.link.connect(hub)
        self._report_often()

    async def close(self) -> None:
        """Send the final report."""
        if self._timer is not None:
            self._timer.cancel()
        self.report()
        await self.link.close()

    def handle(self, message: Message) -> None:
        """Handle a message of the hub."""
        raise ValueError("unexpected message from the hub")

    def lost(self) -> None:
        """The link to the hub is closed."""

    def report(self) -> None:
        """Send the current metrics."""
        self.link.send("page", self._page())

    def _report_often(self) -> None:
        self.report()
        self._timer = asyncio.get_running_loop().call_later(REPORT_INTERVAL, self._report_often)


class Member:
    """The hub's side of the link to one worker. It is passed to `lost` when the worker is gone."""

    def __init__(self, lost: Callable[[Any], object]) -> None:
        self.page = Page()
        self.scraped = False  # whether the page was included in a scrape
        self._on_lost = lost
        self.link = Link(self.handle, self.lost)

    def handle(self, message: Message) -> None:
        """Handle a message of the worker."""
        _, text = message
        page = Page(text)
        if not self.scraped:
            page.keep_most(self.page)
        self.page = page
        self.scraped = False

    def lost(self) -> None:
        """The link to the worker is closed."""
        self._on_lost(self)


AnyMember = TypeVar("AnyMember", bound=Member)


class WorkerHub(Hub, Generic[AnyMember]):
    """A hub that tracks its workers as `members`, made by `make`, and ends with the last one."""

    def __init__(self, make: Callable[[Callable[[AnyMember], object]], AnyMember]) -> None:
        self._make = make
        self.members: set[AnyMember] = set()
        self._past = Page()  # totals of workers that are gone
        self._alone = asyncio.Event()
        self._coming: set[asyncio.Task[None]] = set()

    def adopt(self, worker: socket.socket) -> None:
        member = self._make(self._lost)
        self.members.add(member)
        self._alone.clear()
        member.link.connect(worker)
        task = asyncio.get_running_loop().create_task(self.welcome(member))
        self._coming.add(task)
        task.add_done_callback(self._coming.discard)

    async def welcome(self, member: AnyMember) -> None:
        """Called once the link to a worker is established."""

    def page(self) -> str:
        """The metrics of all workers together."""
        for member in self.members:
            member.scraped = True
        pages = (self._past, *(member.page for member in self.members), Page(self.own_page()))
        return str(total(pages))

    def own_page(self) -> str:
        """The metrics of this process."""
        from mtt.observe.process import process_lines

        return process_lines()

    async def drain(self) -> None:
        await self._alone.wait()

    async def close(self) -> None:
        for task in self._coming:
            task.cancel()
        for member in list(self.members):
            member.link.abort()
        await asyncio.sleep(0)  # lets their lost() run

    def _lost(self, member: AnyMember) -> None:
        self._past.add(member.page.lasting())
        self.members.discard(member)
        if not self.members:
            self._alone.set()


class MetricsHub(WorkerHub[Member]):
    """Serves -metrics for several workers."""

    def __init__(self, endpoint: Endpoint | None, unix_path: str) -> None:
        super().__init__(Member)
        self._server = MetricsServer(self.page, endpoint, unix_path)

    @property
    def addresses(self) -> list[str]:
        return self._server.addresses

    async def start(self) -> None:
        await self._server.serve(Resolver())

    def cleanup(self) -> None:
        self._server.cleanup()

    async def close(self) -> None:
        await self._server.close()
        await super().close()
