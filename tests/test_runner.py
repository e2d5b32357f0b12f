"""The net below all other tests: does it catch what it should?"""

from __future__ import annotations

import asyncio
import os
import time

import pytest

from tests.support.programs import require_program
from tests.support.runner import deadline, run_async

SHORT = 0.05


async def test_debug_mode_is_on() -> None:
    assert asyncio.get_running_loop().get_debug()


async def test_what_closes_by_itself_is_no_leak() -> None:
    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    assert await reader.read() == b"hello"
    writer.close()
    server.close()


def test_a_task_left_running_is_found() -> None:
    kept = []

    async def test() -> None:
        kept.append(asyncio.create_task(asyncio.sleep(60)))

    with pytest.raises(AssertionError, match="tasks left running"):
        run_async(test, 30)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_a_file_descriptor_left_open_is_found() -> None:
    kept: list[int] = []

    async def test() -> None:
        kept.extend(os.pipe())

    with pytest.raises(AssertionError, match=r"file descriptors left open.*pipe"):
        run_async(test, 30)
    for descriptor in kept:
        os.close(descriptor)


def test_an_error_in_a_callback_is_found() -> None:
    async def test() -> None:
        asyncio.get_running_loop().call_soon(lambda: 1 // 0)

    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        run_async(test, 30)


def test_unretrieved_error_fails_the_test() -> None:
    async def test() -> None:
        asyncio.get_running_loop().create_future().set_exception(ValueError("unseen"))

    with pytest.raises(AssertionError, match="unseen"):
        run_async(test, 30)


def test_hanging_test_is_ended() -> None:
    async def test() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(TimeoutError, match="did not end within"):
        run_async(test, SHORT)


def test_a_time_limit_of_the_test_itself_stays_its_own() -> None:
    async def test() -> None:
        async with asyncio.timeout(SHORT):
            await asyncio.get_running_loop().create_future()

    with pytest.raises(TimeoutError) as caught:
        run_async(test, 30)
    assert "did not end" not in str(caught.value)


@pytest.mark.skipif(os.name != "posix", reason="needs SIGALRM")
def test_blocking_code_is_ended() -> None:
    with pytest.raises(pytest.fail.Exception, match="blocked for"), deadline(SHORT):
        time.sleep(30)


def test_a_missing_program_skips_unless_it_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTT_REQUIRE_REAL", "0")
    with pytest.raises(pytest.skip.Exception, match="'no-such-program' is not installed"):
        require_program("no-such-program")
    monkeypatch.setenv("MTT_REQUIRE_REAL", "1")
    with pytest.raises(pytest.fail.Exception, match="'no-such-program' is not installed"):
        require_program("no-such-program")
