"""What every test gets: async tests, deadlines, a check for leaks, and certificates.

`async def test_*` runs in a fresh event loop in asyncio's debug mode. It fails when it leaves
tasks or file descriptors behind or when something was reported to the loop's exception
handler: a tunnel process lives for months, so what is leaked once is leaked without end.
"""

from __future__ import annotations

import gc
import inspect
import logging
import sys
from asyncio import constants
from collections.abc import Iterator

import pytest

from tests.support.certs import Certs, make_certs
from tests.support.loopback import refusing
from tests.support.processes import Processes
from tests.support.runner import deadline, run_async

DEADLINE = 30.0  # seconds; generous for slow CI machines, short enough to sit through a hang

# Debug mode keeps the stack of every call_soon(), and asks the file system about each of its files.
# The nearest three frames say where; asyncio's ten took a quarter of the time of these tests.
constants.DEBUG_STACK_DEPTH = 3


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", f"deadline(seconds): time limit of one test, {DEADLINE:g} s unless given"
    )


def pytest_collection_finish() -> None:
    """Take what the imports made out of the garbage collector's sight.

    Every async test ends with a full collection; without this each would walk through all of
    pytest and cryptography again.
    """
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """The same with pytest's reports of each file's tests."""
    if nextitem is None or nextitem.path != item.path:
        gc.collect()
        gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool:
    marker = pyfuncitem.get_closest_marker("deadline")
    seconds = float(marker.args[0]) if marker else DEADLINE
    names = pyfuncitem._fixtureinfo.argnames
    arguments = {name: pyfuncitem.funcargs[name] for name in names}
    if inspect.iscoroutinefunction(pyfuncitem.obj):
        run_async(lambda: pyfuncitem.obj(**arguments), seconds)
    else:
        with deadline(seconds):
            pyfuncitem.obj(**arguments)
    return True


@pytest.fixture(autouse=True)
def unchanged_log() -> Iterator[None]:
    """Undo what a command does to the log of its process, and a changed level."""
    loggers = [logging.getLogger(name) for name in ("mtt", "asyncio")]
    before = [(each, each.handlers[:], each.propagate, each.level) for each in loggers]
    hook = sys.unraisablehook
    yield
    sys.unraisablehook = hook
    for each, handlers, propagate, level in before:
        each.handlers[:] = handlers
        each.propagate = propagate
        if each.level != level:  # it empties a cache of all loggers
            each.setLevel(level)


@pytest.fixture(scope="session")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Certs:
    """A CA and a server certificate for `test.local` as files, and an unrelated pair."""
    return make_certs(tmp_path_factory.mktemp("certs"))


@pytest.fixture
def refused_port() -> Iterator[int]:
    with refusing() as port:
        yield port


@pytest.fixture
def processes() -> Iterator[Processes]:
    """Starts programs; whatever happens, none of them outlives the test."""
    with Processes() as running:
        yield running
