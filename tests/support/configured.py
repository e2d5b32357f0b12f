"""Several tunnels of a configuration file in one process, and files that change."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import mtt_client
import mtt_mu_server.__main__
import mtt_server
from mtt.configured.service import ConfiguredTunnels
from mtt.configured.tunnels import RunningTunnel, Tunnels
from mtt.process.command import Command, Prepare, Start
from tests.support.certs import Certs

PROGRAMS: dict[str, tuple[Command, Prepare]] = {
    "mtt-client": (mtt_client.COMMAND, mtt_client.prepare),
    "mtt-server": (mtt_server.COMMAND, mtt_server.prepare),
    "mtt-mu-server": (mtt_mu_server.__main__.COMMAND, mtt_mu_server.__main__.prepare),
}


class File:
    """A configuration file of a command, as JSON."""

    def __init__(self, folder: Path, content: dict[str, Any], command: str = "mtt-server") -> None:
        self.path = folder / f"{command}.json"
        self.path.touch(0o600)
        self.command = command
        self.write(content)

    def write(self, content: object) -> None:
        text = content if isinstance(content, str) else json.dumps(content)
        new = self.path.with_name("new")  # replaced as a whole: the file may be read at any time
        new.touch(0o600)
        new.write_text(text)
        new.replace(self.path)

    def tunnels(self, **given: Any) -> Tunnels:
        """The tunnels; `given` are options of the command line."""
        command, prepare = PROGRAMS[self.command]
        assert command.complete is not None
        reread = partial(command.complete, {"config": str(self.path)} | given, {})
        return ConfiguredTunnels(reread(), Start(reread=reread), prepare)


@contextlib.asynccontextmanager
async def running(file: File, **given: Any) -> AsyncIterator[Tunnels]:
    """The tunnels of a file, from their start to their end."""
    tunnels = file.tunnels(**given)
    await tunnels.start()
    try:
        yield tunnels
    finally:
        await tunnels.close()


def tunnel_named(tunnels: Tunnels, name: str) -> RunningTunnel:
    """The tunnel that runs under a name."""
    (found,) = (each for each in tunnels.running if each.name == name)
    return found


def port_of_tunnel(tunnels: Tunnels, name: str) -> int:
    return int(tunnel_named(tunnels, name).service.addresses[0].rpartition(":")[2])


def plain(name: str, destination: int, port: int = 0, **options: Any) -> dict[str, Any]:
    """A tunnel of mtt-server for tests that need no client: WebSockets are not asked for."""
    return {"name": name, "b": f"127.0.0.1:{port}", "d": f"127.0.0.1:{destination}", **options}


def trusting(certs: Certs) -> dict[str, Any]:
    """What all clients have in common."""
    return {"ca": certs.ca, "n": certs.name}


def certified(certs: Certs) -> dict[str, Any]:
    """What all servers have in common."""
    return {"cert": certs.cert, "key": certs.key}
