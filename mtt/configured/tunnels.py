"""Several tunnels in one process, as a configuration file describes them.

Each tunnel is a separate service, which does not know of the others. They share the process with
its event loop, signals and workers, the metrics server, and a limit on connections.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Coroutine, Iterable
from contextvars import copy_context
from typing import Any, TypeVar

from mtt.configured.plan import Plan, PlannedTunnel
from mtt.layers.poller import poller
from mtt.log import logger, subject
from mtt.net.admission import Admission
from mtt.net.resolve import Resolver
from mtt.observe.endpoint import MetricsEndpoint
from mtt.observe.lag import LagMeter
from mtt.observe.metrics import labels
from mtt.observe.process import build_lines, process_lines
from mtt.observe.sums import Page, total
from mtt.options.tunnel_file import TunnelFile
from mtt.process import runtime
from mtt.process.configuration import Configuration
from mtt.tunnels.service import Service

_Result = TypeVar("_Result")


class Subject:
    """The name of the tunnel in log lines.

    A separate object, because contexts refer to it, and cancelled timers keep contexts alive for
    minutes.
    """

    __slots__ = ("_tunnels", "name")

    def __init__(self, name: str, tunnels: Tunnels) -> None:
        self.name = name
        self._tunnels = tunnels

    def __str__(self) -> str:
        return self.name if self._tunnels.are_several else ""


class RunningTunnel:
    """A tunnel that runs or will start.

    Its code runs in a context that adds the tunnel's name to log lines.
    """

    def __init__(self, planned: PlannedTunnel, file: TunnelFile, tunnels: Tunnels) -> None:
        """Raises MttError, for example if its certificate is unusable."""
        self.planned = planned
        self._file = file
        self._subject = Subject(planned.name, tunnels)
        self._context = copy_context()
        self._context.run(subject.set, self._subject)
        with file.errors(planned.place):
            service = self.run(planned.prepared.make)
        assert isinstance(service, Service)
        self.service = service
        service.is_alone = service.shares_state  # it serves its metrics itself
        service.counters.started = tunnels.started
        service.open_tunnels.admission.above = tunnels.admission
        if tunnels.is_heavy is not None:
            service.join(None, tunnels.is_heavy)

    @property
    def name(self) -> str:
        return self.planned.name

    def rename(self, planned: PlannedTunnel) -> None:
        """Continue as another entry of the file, with the same options."""
        self.planned = planned
        self._subject.name = planned.name

    def run(self, function: Callable[..., _Result], *arguments: object) -> _Result:
        """Call `function` in the tunnel's context."""
        return self._context.copy().run(function, *arguments)

    def task(self, work: Coroutine[Any, Any, _Result]) -> asyncio.Task[_Result]:
        """Start a task in the tunnel's context."""
        loop = asyncio.get_running_loop()
        return loop.create_task(work, context=self._context.copy())

    async def wait(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """The result of `work` in the tunnel's context. Errors name the tunnel."""
        with self._file.errors(self.planned.place, names_file=False):
            return await self.task(work)


class Tunnels(runtime.Service):
    """The tunnels of a configuration file.

    Attributes:
        configuration: the file, which is followed; None in a worker.
        running: the tunnels of the file.
        started: Unix time.
        is_heavy: in a worker, see `join()`.
        leaving: tunnels that were removed or changed, until they have ended.
        are_several: whether log lines and metrics name the tunnel.

    Raises MttError if a certificate is unusable.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.started = time.time()
        self.are_several = len(self.plan.tunnels) > 1
        self.is_over = False
        self.admission = Admission(self.plan.max_conns, self._count)
        self.running: list[RunningTunnel] = []
        self.leaving: dict[RunningTunnel, asyncio.Task[None]] = {}
        self.is_heavy: Callable[[int], bool] | None = None
        self._past: dict[str, Page] = {}  # last metrics of ended tunnels, by name
        self.running = [RunningTunnel(each, self.plan.file, self) for each in self.plan.tunnels]
        self.endpoint = MetricsEndpoint(self.metrics_page, *self.plan.metrics, Resolver())
        self.lag = LagMeter()
        self.configuration: Configuration[Plan] | None = None

    @property
    def addresses(self) -> list[str]:
        return [address for each in self.running for address in each.service.addresses]

    @property
    def metrics_addresses(self) -> list[str]:
        """Listening addresses for metrics."""
        return self.endpoint.addresses

    @property
    def tunnels(self) -> int:
        return sum(each.service.tunnels for each in self._all)

    @property
    def _all(self) -> list[RunningTunnel]:
        return [*self.running, *self.leaving]

    @property
    def shares_state(self) -> bool:
        return any(each.service.shares_state for each in self.running)

    def _count(self) -> int:
        """The number of connections, for -max-conns."""
        return sum(each.service.open_tunnels.connections for each in self._all)

    # Start.

    async def bind(self) -> None:
        for each in self.running:
            await each.wait(each.service.bind())

    async def start(self) -> None:
        poller()  # not in the context of a tunnel
        try:
            for each in self.running:
                await each.wait(each.service.start())
            if await self.endpoint.start():
                self.lag.start()
        except BaseException:
            await self.close()
            raise
        if self.configuration is not None:
            self.configuration.follow()

    def announce(self) -> None:
        describe_certificates(self.running)
        for each in self.running:
            each.run(each.service.announce)

    def hub(self) -> runtime.Hub | None:
        if not self.shares_state:
            return self.endpoint.hub()
        from mtt.configured.hubs import TunnelHub, TunnelHubs

        hubs = [(each, each.run(each.service.hub)) for each in self.running]
        return TunnelHubs([TunnelHub(hub, each.run, each.task) for each, hub in hubs if hub])

    def join(self, hub: socket.socket | None, is_heavy: Callable[[int], bool]) -> None:
        self.configuration = None
        self.is_heavy = lambda _: is_heavy(sum(each.service.connections for each in self._all))
        hubs: list[socket.socket | None] = [None] * len(self.running)
        if not self.shares_state:
            self.endpoint.report_to(hub)
        elif hub is not None:
            from mtt.configured.hubs import connections

            hubs[:] = connections(hub, len(hubs))
        for each, own in zip(self.running, hubs, strict=True):
            each.service.join(own, self.is_heavy)

    # Operation.

    def reload(self) -> None:
        if self.configuration is not None:
            self.configuration.reload()
        for each in self.running:
            each.run(each.service.reload_files)

    def renew(self) -> None:
        for each in self.running:
            each.run(each.service.renew)

    def metrics_page(self) -> str:
        """The metrics of all tunnels, with a label `tunnel` if there are several."""
        pages: list[Page] = []
        for name, page in [
            *((each.name, Page(each.service.metrics_page())) for each in self._all),
            *self._past.items(),
        ]:
            pages.append(page.labelled(labels(tunnel=name)) if self.are_several else page)
        return build_lines() + process_lines() + str(total(pages)) + self.lag.lines()

    # Another configuration.

    def use(self, running: list[RunningTunnel]) -> None:
        """Replace the tunnels; the former ones finish as at the end of the process."""
        former = [each for each in self.running if each not in running]
        self.running = running
        for each in former:
            each.run(each.service.cleanup)
            self.leaving[each] = each.task(self._finish(each))
        self._names_changed()

    async def _finish(self, each: RunningTunnel) -> None:
        service, grace = each.service, self.plan.process.grace
        goes_on = any(other.name == each.name for other in self.running)
        what = "changed" if goes_on else "removed"
        logger.info("%s", runtime.stop_plan(what, service.tunnels, grace))
        await runtime.stop(service, grace)
        page = Page(service.metrics_page()).lasting()
        page.add(self._past.get(each.name, Page()))
        self._past[each.name] = page
        del self.leaving[each]
        self._names_changed()

    def _names_changed(self) -> None:
        self.are_several = len({each.name for each in self._all}) > 1
        names = {each.name for each in self.running}
        self._past = {name: page for name, page in self._past.items() if name in names}

    # Shutdown.

    def cleanup(self) -> None:
        self.is_over = True
        for each in self._all:
            each.service.cleanup()
        self.endpoint.cleanup()

    async def drain(self) -> None:
        await asyncio.gather(*(each.task(each.service.drain()) for each in self._all))

    async def close(self) -> None:
        self.cleanup()
        self.lag.stop()
        if self.configuration is not None:
            await self.configuration.close()
        finishing = list(self.leaving.values())
        for task in finishing:
            task.cancel()
        if finishing:
            await asyncio.wait(finishing)
        await self.endpoint.close()
        await asyncio.gather(*(each.task(each.service.close()) for each in self._all))
        await self.endpoint.report()


def describe_certificates(tunnels: Iterable[RunningTunnel]) -> None:
    """Describe the certificates for the log, which is slow; `Identity.words` keeps the result."""
    for each in tunnels:
        for files in each.service.certificates:
            if files.identity is not None:
                files.describe()
