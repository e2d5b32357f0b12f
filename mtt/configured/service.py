"""Follows a configuration file, in one process or in several.

    one process         reads the file, and applies it to its tunnels
    several processes   the supervisor reads the file, listens at new addresses, and passes content
                        and sockets to the workers, which apply them to their tunnels
"""

from __future__ import annotations

import asyncio
import os
import pickle
import socket
from collections.abc import Callable, Sequence
from functools import partial

from mtt import log
from mtt.configured.plan import Plan, plan
from mtt.configured.reload import Change, apply, bound
from mtt.configured.tunnels import RunningTunnel, Tunnels
from mtt.errors import StartError, describe
from mtt.followed import CHECK_INTERVAL
from mtt.log import logger
from mtt.options.flags import Values
from mtt.options.process import CONFIG
from mtt.process.command import Prepare, Start
from mtt.process.configuration import Changes, Configuration

# The exit code of a worker that cannot apply an update; the supervisor replaces the worker.
_LEFT_BEHIND = 1


class ConfiguredTunnels(Tunnels):
    """Tunnels that follow their configuration file.

    Args:
        values: the options of the process, with the file's tunnels, see `with_tunnels()`.
        start: how the command was started.
        prepare: checks the options of one tunnel.

    Raises MttError if options or certificates are unusable.
    """

    update_interval = CHECK_INTERVAL

    def __init__(self, values: Values, start: Start, prepare: Prepare) -> None:
        self._check = partial(plan, start=start, prepare=prepare)
        super().__init__(self._check(values))
        assert start.reread is not None
        self.configuration = Configuration(
            values[CONFIG.name], start.reread, values, self._check, partial(apply, self)
        )
        self._started = asyncio.Event()
        self._update: asyncio.Task[None] | None = None
        self._message = -1  # the descriptor of the last update

    async def start(self) -> None:
        await super().start()
        self._started.set()

    # In the supervisor.

    def update(self, *, asked: bool) -> Sequence[int]:
        configuration = self.configuration
        if configuration is None or not (asked or configuration.is_due()):
            return ()
        descriptors: list[int] = []
        configuration.read_now(lambda wanted: self._prepare_workers(wanted, descriptors))
        return descriptors

    def _prepare_workers(self, wanted: Plan, descriptors: list[int]) -> Changes:
        """Listen for a plan; appends to `descriptors` what the workers need to apply it."""
        from mtt.process.supervisor_link import MAX_DESCRIPTORS

        change = Change(self, wanted)
        names = {each.name for each in change.former} | {each.name for each in change.planned}
        if self.shares_state and names:  # in a hub, which has the users of these tunnels
            change.changes.refused += sorted(names)
            return change.changes
        new = change.make()
        heirs = change.heirs(new)
        fresh = [each for each, old in heirs.items() if old is None]
        try:
            # A temporary loop: the supervisor has none, because it forks.
            with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
                runner.run(_bind(fresh))
            sockets = {each.name: each.service.descriptors for each in fresh}
            numbers = [number for each in sockets.values() for number in each]
            if len(numbers) >= MAX_DESCRIPTORS:
                raise StartError(f"too many new addresses at once ({len(numbers)}); restart")
        except BaseException:
            for each in fresh:
                each.service.stop_listening()
            raise
        self._write((wanted.values, {name: len(each) for name, each in sockets.items()}))
        descriptors += [self._message, *numbers]
        for each, old in heirs.items():
            if old is not None:
                old.service.hand_over(each.service)
        self.running = change.finish(new)
        self.are_several = len(self.running) > 1
        for old in change.former:
            old.service.stop_listening()
        for each in new:
            each.run(each.service.announce)
        return change.changes

    def _write(self, content: object) -> None:
        """Write `content`, which may have secrets, to an anonymous file: `self._message`."""
        self._forget_message()
        data = pickle.dumps(content)
        if hasattr(os, "memfd_create"):
            self._message = os.memfd_create("configuration")
        else:  # not Linux
            import tempfile

            with tempfile.TemporaryFile() as file:
                self._message = os.dup(file.fileno())
        with open(self._message, "wb", closefd=False) as written:
            written.write(data)

    def _forget_message(self) -> None:
        if self._message >= 0:
            os.close(self._message)
            self._message = -1

    # In a worker.

    def join(self, hub: socket.socket | None, is_heavy: Callable[[int], bool]) -> None:
        super().join(hub, is_heavy)
        self._forget_message()
        log.set_level(self.plan.process.log_level)  # perhaps not that of the supervisor's start

    def take_update(self, descriptors: Sequence[int]) -> None:
        before = self._update
        self._update = asyncio.get_running_loop().create_task(self._follow(before, descriptors))

    async def _follow(self, before: asyncio.Task[None] | None, descriptors: Sequence[int]) -> None:
        """Apply an update, after the one `before`."""
        if before is not None:
            await asyncio.wait([before])
        await self._started.wait()
        message, *numbers = descriptors
        try:
            # Not by read(): all workers share the file's position.
            values, counts = pickle.loads(os.pread(message, os.fstat(message).st_size, 0))
            os.close(message)
            rest = iter(numbers)
            sockets = {name: [next(rest) for _ in range(count)] for name, count in counts.items()}
            wanted = await asyncio.to_thread(self._check, values)
            log.set_level(wanted.process.log_level)
            await apply(self, wanted, sockets)
        except Exception as error:
            # For example because a file has changed meanwhile.
            logger.error("worker stopped: cannot apply the new configuration: %s", describe(error))
            logger.debug("where it happened:", exc_info=True)
            os._exit(_LEFT_BEHIND)


async def _bind(tunnels: Sequence[RunningTunnel]) -> None:
    for each in tunnels:
        await each.wait(bound(each, None))
