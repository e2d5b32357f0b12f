from __future__ import annotations

import os

import pytest

from mtt.process.worker_loads import WorkerLoads


@pytest.mark.parametrize(
    ("loads", "heavy"),
    [
        ((0, 0), False),
        ((1, 0), True),
        ((0, 1), False),
        ((8, 7), True),
        ((9, 8), False),
        ((10, 8), True),
        ((109, 100), False),
        ((120, 100), True),
        ((5, 9, 4), True),
    ],
)
def test_worker_with_more_connections_yields(loads: tuple[int, ...], heavy: bool) -> None:
    shared = WorkerLoads(len(loads))
    first, *others = [shared.for_worker(number) for number in range(1, len(loads) + 1)]
    for is_heavy, load in zip(others, loads[1:], strict=True):
        is_heavy(load)
    assert first(loads[0]) is heavy


def test_absent_workers_are_ignored() -> None:
    shared = WorkerLoads(3)
    first, second = shared.for_worker(1), shared.for_worker(2)
    assert not first(100)
    assert not second(0)
    assert first(100)
    shared.clear(2)
    assert not first(100)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_loads_are_shared_between_processes() -> None:
    shared = WorkerLoads(2)
    pid = os.fork()
    if not pid:
        shared.for_worker(2)(3)
        os._exit(0)
    os.waitpid(pid, 0)
    assert shared.for_worker(1)(4)
