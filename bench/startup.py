"""Start-up: from exec until the first connection is accepted."""

from __future__ import annotations

import sys
import time

from bench.loads import Sample, Scene
from bench.processes import free_port
from bench.subjects import Command, Place, Subject

# What any asyncio program with TLS has to load: `python3 -c` of it, from exec to its end.
BASELINE = "import asyncio, ssl"


def measure_baseline(scene: Scene) -> Sample:
    start = time.perf_counter()
    scene.programs.start([sys.executable, "-c", BASELINE]).wait()
    milliseconds = (time.perf_counter() - start) * 1e3
    return {"client_ms": milliseconds, "server_ms": milliseconds}


def measure_startup(scene: Scene, subject: Subject) -> Sample:
    """Milliseconds, for each end. The client's server is not there: it must not matter."""
    assert subject.client is not None
    assert subject.server is not None
    return {
        "client_ms": _start_time(scene, subject, subject.client),
        "server_ms": _start_time(scene, subject, subject.server),
    }


def _start_time(scene: Scene, subject: Subject, command: Command) -> float:
    listen, nobody = free_port(), free_port()
    argv = command(Place(listen, nobody, scene.certs, scene.directory))
    start = time.perf_counter()
    program = scene.programs.start(argv, subject.env(scene.certs))
    program.wait_connectable(listen)
    taken = time.perf_counter() - start
    program.stop()
    return taken * 1e3
