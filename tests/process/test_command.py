from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from typing import Any

import pytest

from mtt import __version__
from mtt.errors import NetworkError, StartError, UsageError
from mtt.log import logger
from mtt.options.flags import Values
from mtt.options.process import CHECK, LOG, ProcessOptions
from mtt.options.tunnel import CLIENT_FLAGS, SERVER_FLAGS
from mtt.process import runtime, workers
from mtt.process.command import Command, Start, given_options, main
from mtt.process.systemd import Inherited, ServiceManager
from plugin.sip003 import PluginEnvironment, Sip003

ENVIRON = {
    "SS_REMOTE_HOST": "2001:db8::1|example.com",
    "SS_REMOTE_PORT": "443",
    "SS_LOCAL_HOST": "127.0.0.1",
    "SS_LOCAL_PORT": "1080",
}


class Service(runtime.Service):
    def __init__(self, values: Values, start: Start) -> None:
        self.values, self.origin = values, start


def client_addresses(shadowsocks: PluginEnvironment) -> Values:
    return {"b": str(shadowsocks.local), "s": str(shadowsocks.remote)}


CLIENT = Command("client", "A client.", CLIENT_FLAGS, Service, Sip003(client_addresses))
ALONE = Command("alone", "Never a plugin.", SERVER_FLAGS, Service)


def test_command_line_alone() -> None:
    assert given_options(CLIENT, ["-b", ":1", "-wss"], {}) == ({"b": ":1", "wss": True}, None)


def test_only_plugins_read_the_environment() -> None:
    assert given_options(ALONE, ["-wss"], {"SS_LOCAL_HOST": "x"}) == ({"wss": True}, None)


@pytest.mark.parametrize("environ", [{}, ENVIRON, {"SS_LOCAL_HOST": "x"}])
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help(option: str, environ: dict[str, str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(CLIENT, ["-wss", option], environ) == 0
    out, err = capfd.readouterr()
    assert out.startswith("Usage: client [option ...]\n\nA client.\n")
    assert err == ""


def test_version(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(CLIENT, ["-version"], {}) == 0
    assert capfd.readouterr() == (f"client {__version__}\n", "")


@pytest.mark.parametrize(
    ("argv", "environ", "words"),
    [
        (["-nope"], {}, "-nope is not an option"),
        ([], {"SS_PLUGIN_OPTIONS": ""}, "as a plugin without SS_REMOTE_HOST"),
        ([], {**ENVIRON, "SS_PLUGIN_OPTIONS": "nope"}, "plugin option nope is not"),
        (["-nope"], ENVIRON, "-nope is not an option"),
    ],
)
def test_usage_errors_are_one_line(
    argv: list[str], environ: dict[str, str], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(CLIENT, argv, environ) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("client: ")
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UsageError("-cert: no such file"), 2, "client: -cert: no such file\n"),
        (StartError("port in use"), 1, "client: port in use\n"),
        (NetworkError("no\nroute"), 1, "client: no\\nroute\n"),
        (KeyboardInterrupt(), 0, ""),
        (
            KeyError("k"),
            1,
            "client: KeyError: 'k' (internal error; -verbose shows where)\n",
        ),
    ],
)
@pytest.mark.parametrize("when", ["building", "starting"])
def test_errors_become_exit_codes(
    error: BaseException, code: int, line: str, when: str, capfd: pytest.CaptureFixture[str]
) -> None:
    class Failing(Service):
        async def start(self) -> None:
            raise error

    def service(values: Values, start: Start) -> Service:
        if when == "building":
            raise error
        return Failing(values, start)

    assert main(CLIENT._replace(service=service), [], {}) == code
    assert capfd.readouterr() == ("", line)


def test_internal_errors_have_a_traceback_with_verbose() -> None:
    def service(_values: Values, _start: Start) -> Service:
        raise KeyError("k")

    with pytest.raises(KeyError):
        main(CLIENT._replace(service=service), ["-verbose"], {})


def test_check_builds_the_service_and_ends(capfd: pytest.CaptureFixture[str]) -> None:
    flags = (CHECK, LOG)
    command = Command("checked", "Can be checked.", flags, Service)
    assert main(command, ["-check"], {}) == 0
    assert capfd.readouterr() == ("checked: the configuration is usable\n", "")

    def service(_values: Values, _start: Start) -> Service:
        raise UsageError("-cert: no such file")

    assert main(command._replace(service=service), ["-check"], {}) == 1
    assert capfd.readouterr() == ("", "checked: -cert: no such file\n")


def test_options_of_a_file_that_an_option_names(capfd: pytest.CaptureFixture[str]) -> None:
    def complete(given: Values, environ: Mapping[str, str]) -> Values:
        logger.warning("read %s", environ["FILE"])
        return {"log": "json"} | given

    def service(values: Values, _start: Start) -> Service:
        assert values == {"log": "json", "check": True}
        raise StartError("port in use")

    command = Command("c", "Reads a file.", (CHECK, LOG), service, complete=complete)
    assert main(command, ["-check"], {"FILE": "x"}) == 1
    out, err = capfd.readouterr()
    assert out == ""
    before, after = err.splitlines()
    assert before.endswith("read x")
    assert json.loads(after)["msg"] == "port in use"


class Run:
    """Stands for runtime.run() and keeps what it was called with."""

    def __init__(self) -> None:
        self.service: Any = None
        self.plugin = False
        self.watch: Any = None
        self.manager: Any = None
        self.options: Any = None

    def __call__(self, service: Service, **others: Any) -> int:
        self.service = service
        vars(self).update(others)
        return 0


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    fake = Run()
    monkeypatch.setattr(runtime, "run", fake)
    return fake


def test_the_service_runs(run: Run) -> None:
    assert main(CLIENT, ["-b", ":1", "-grace", "3s", "-loop", "asyncio"], {}) == 0
    assert run.service.values["b"] == ":1"
    assert run.service.origin == Start()
    assert (run.plugin, run.watch) == (False, None)
    assert run.options == ProcessOptions(grace=3.0, loop="asyncio")


@pytest.mark.parametrize("environ", [{}, ENVIRON], ids=["alone", "plugin"])
def test_several_workers_have_a_supervisor(
    environ: dict[str, str], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Run()

    class Supervisor:
        def __init__(self, service: Service, **others: Any) -> None:
            fake(service, **others)

        def run(self) -> int:
            return 0

    monkeypatch.setattr(workers, "Supervisor", Supervisor)
    assert main(CLIENT, ["-b", ":1", "-workers", "2"], environ) == 0
    assert run.service is None
    assert fake.service.values["workers"] == 2
    kept = vars(fake)
    assert (kept["name"], kept["options"].workers) == ("client", 2)
    assert (kept.get("parent") is not None) == bool(environ)


SYSTEMD = {
    "LISTEN_PID": str(os.getpid()),
    "LISTEN_FDS": "2",
    "LISTEN_FDNAMES": "tunnel:control",
    "NOTIFY_SOCKET": "/run/systemd/notify",
}


def test_the_service_runs_for_systemd(run: Run) -> None:
    assert main(CLIENT, [], SYSTEMD) == 0
    assert run.service.origin == Start(sockets=(Inherited(3, "tunnel"), Inherited(4, "control")))
    assert run.service.origin.descriptors == (3, 4)
    assert isinstance(run.manager, ServiceManager)
    run.manager.close()


def test_the_service_runs_for_shadowsocks(run: Run) -> None:
    assert main(CLIENT, ["-b", ":1"], ENVIRON) == 0
    assert run.service.values["b"] == ":1"
    assert run.service.origin == Start(plugin=True)
    assert run.plugin
    assert run.watch is not None


def test_plugins_ignore_the_variables_of_systemd(run: Run) -> None:
    assert main(CLIENT, [], ENVIRON | SYSTEMD) == 0
    assert run.service.origin == Start(plugin=True)
    assert run.manager is None


def test_invalid_systemd_variables_are_usage_errors(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(CLIENT, [], SYSTEMD | {"LISTEN_FDS": "x"}) == 2
    assert capfd.readouterr().err.startswith("client: LISTEN_FDS: 'x' is not")


def test_errors_are_json_where_the_log_is(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(CLIENT._replace(service=_refuse), ["-log=json", "-log-level=error"], {}) == 1
    line = json.loads(capfd.readouterr().err)
    assert (line["level"], line["program"], line["msg"]) == ("error", "client", "no")


def test_verbose_sets_up_the_log() -> None:
    for argv, level in (([], logging.INFO), (["-verbose"], logging.DEBUG)):
        main(CLIENT._replace(service=_refuse), argv, {})
        assert logging.getLogger("mtt").level == level


def _refuse(_values: Values, _start: Start) -> Service:
    raise StartError("no")
