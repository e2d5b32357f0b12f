"""A configuration file that changes while a service runs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from mtt import followed
from mtt.errors import StartError, UsageError
from mtt.files import read_text
from mtt.options.flags import Values
from mtt.process.configuration import Changes, Configuration
from tests.support.tunnels import eventually, logged


class Service:
    """Has one option: the text of its file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.text = path.read_text()
        self.configuration = Configuration(
            str(path), self.read, self.read(), self.check, self.apply
        )

    def read(self) -> Values:
        text = read_text("-config", str(self.path), limit=100)
        levels = {"text debug": "debug", "text error": "error"}
        log_format = "json" if text == "text json" else "text"
        return {"text": text, "log-level": levels.get(text, "info"), "log": log_format}

    def check(self, values: Values) -> str:
        text: str = values["text"]
        if text == "broken":
            raise UsageError("config: it is broken")
        if text == "named":
            return read_text("-password-file", str(self.path.with_name("secret")), limit=100)
        return text

    async def apply(self, text: str) -> Changes:
        if text == "taken":
            raise StartError("cannot listen: the port is taken")
        if text == "bug":
            raise KeyError(text)
        changes = Changes()
        changes.refuse("listen_addr", *(each.startswith("other") for each in (self.text, text)))
        changes.add("rules", self.text[-1], text[-1])
        self.text = text
        return changes


@contextlib.asynccontextmanager
async def following(folder: Path) -> AsyncIterator[Service]:
    path = folder / "file"
    path.write_text("text 1")
    service = Service(path)
    service.configuration.follow()
    try:
        yield service
    finally:
        await service.configuration.close()


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    monkeypatch.setattr(followed, "CHECK_INTERVAL", 0.02)
    with logged() as lines:
        yield lines


async def test_a_changed_file_is_applied_and_logged(tmp_path: Path, lines: list[str]) -> None:
    async with following(tmp_path) as service:
        service.path.write_text("text 2")
        await eventually(lambda: lines)
        assert service.text == "text 2"
        assert lines == ["INFO reloaded: rules"]


async def test_keys_that_need_a_restart_are_named(tmp_path: Path, lines: list[str]) -> None:
    async with following(tmp_path) as service:
        service.path.write_text("other 1")
        await eventually(lambda: lines)
        assert lines == ["WARNING changed, but not before a restart: listen_addr"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("broken", "ERROR the old configuration stays in use: config: it is broken"),
        ("taken", "ERROR the old configuration stays in use: cannot listen: the port is taken"),
        ("bug", "ERROR configuration not reloaded: internal error: 'bug'"),
    ],
)
async def test_an_error_keeps_the_old_options(
    text: str, line: str, tmp_path: Path, lines: list[str]
) -> None:
    async with following(tmp_path) as service:
        service.path.write_text(text)
        await eventually(lambda: lines)
        assert (service.text, lines) == ("text 1", [line])
        service.path.write_text("text 3")
        await eventually(lambda: service.text == "text 3")


async def test_a_pipe_is_not_read_again(tmp_path: Path, lines: list[str]) -> None:
    async with following(tmp_path) as service:
        service.path.unlink()
        os.mkfifo(service.path)
        service.configuration.read_now(lambda _: pytest.fail("it was read"))
        assert lines == [
            f"ERROR the old configuration stays in use: -config: {service.path} is a pipe, which "
            "is read at the start alone"
        ]


async def test_a_pipe_that_the_file_names_is_not_read_again(
    tmp_path: Path, lines: list[str]
) -> None:
    async with following(tmp_path) as service:
        secret = tmp_path / "secret"
        os.mkfifo(secret)
        service.path.write_text("named")
        await eventually(lambda: lines)
        assert lines == [
            f"ERROR the old configuration stays in use: -password-file: {secret} is a pipe, which "
            "is read at the start alone"
        ]


async def test_a_request_reloads_at_once(
    tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(followed, "CHECK_INTERVAL", 3600.0)
    async with following(tmp_path) as service:
        service.configuration.reload()
        await eventually(lambda: lines)
        service.path.write_text("text 4")
        service.configuration.reload()
        await eventually(lambda: len(lines) == 2)
        assert lines == ["INFO reloaded: the configuration has not changed", "INFO reloaded: rules"]


async def test_the_level_of_the_log_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels: list[str] = []
    monkeypatch.setattr("mtt.log.set_level", levels.append)
    monkeypatch.setattr(followed, "CHECK_INTERVAL", 0.02)
    async with following(tmp_path) as service:
        for text, level in (("text debug", "debug"), ("text error", "error"), ("text 1", "info")):
            service.path.write_text(text)
            await eventually(lambda level=level: levels[-1:] == [level])  # type: ignore[misc]
    assert levels == ["debug", "error", "info"]


async def test_the_format_of_the_log_needs_a_restart(tmp_path: Path, lines: list[str]) -> None:
    async with following(tmp_path) as service:
        service.path.write_text("text json")
        await eventually(lambda: len(lines) == 2)
        assert lines[1] == "WARNING changed, but not before a restart: log format"


def test_numbers_of_changes_are_words() -> None:
    changes = Changes()
    changes.count(1, "proxy", "proxies", "added")
    changes.count(2, "proxy", "proxies", "removed")
    changes.count(0, "gateway", "gateways", "added")
    changes.count(3, "gateway", "gateways", "removed")
    assert changes.done == ["1 proxy added", "2 proxies removed", "3 gateways removed"]


# In a process without an event loop.


def test_change_is_applied_after_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("text 1")
    service = Service(path)
    is_due = service.configuration.is_due
    assert not is_due()
    path.write_text("text 22")
    assert not is_due()
    path.write_text("text 333")
    assert not is_due()
    assert is_due()
    assert not is_due()


def test_a_file_is_read_at_once(tmp_path: Path, lines: list[str]) -> None:
    path = tmp_path / "file"
    path.write_text("text 1")
    service = Service(path)

    def apply(text: str) -> Changes:
        changes = Changes()
        changes.add("rules", "", text)
        return changes

    service.configuration.read_now(apply)
    path.write_text("broken")
    service.configuration.read_now(apply)
    assert lines == [
        "INFO reloaded: rules",
        "ERROR the old configuration stays in use: config: it is broken",
    ]
