"""Configuration files: those of the Go program, the log, the options of the command line."""

from __future__ import annotations

import json
import random
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from anyproxy.client_config import agent_options
from anyproxy.config import ENVIRON, FLAGS, TREE, with_file
from anyproxy.gateway_config import gateway_options
from anyproxy.options import AgentOptions, OpenPort
from mtt.address import Endpoint
from mtt.errors import UsageError
from mtt.options.flags import Values, parse_args
from mtt.options.section import Section
from mtt.proxy.host_rules import ALLOW_ALL
from mtt.trust.tls_options import ServerTls
from mtt.users.user import User
from tests.anyproxy.configs import GO, OLDER, values_of
from tests.support.programs import require_package

AGENTS = User("agents", "agents-password")


def test_go_file_of_a_gateway(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    require_package("yaml")
    options = gateway_options(values_of(tmp_path, GO))
    assert options.bind == Endpoint(("",), 9091)
    assert options.tls == ServerTls(
        cert="certs/server.crt", key="certs/server.key", alpn=("http/1.1",),
        options=("gateway.tls_cert", "gateway.tls_key"),
    )  # fmt: skip
    assert options.login == AGENTS
    assert (options.credentials.kind, options.credentials.path) == ("file", "credentials.json")
    assert options.http is not None
    assert options.socks5 is not None
    assert options.http.bind == Endpoint(("",), 8080)
    assert options.http.tls is not None
    assert options.http.tls.cert == "certs/proxy.crt"
    assert options.socks5.bind == Endpoint(("",), 1080)
    assert options.socks5.tls is None
    assert options.http.group_login
    assert options.socks5.group_login
    assert options.groups == {}
    name = f"-config: {tmp_path}/config.yaml"
    assert caplog.messages == [
        f"{name}: not used: log.output, log.file, log.max_size, log.max_backups, log.max_age, "
        "log.compress: the log goes to stderr",
        f"{name}: gateway.proxy.socks5.listen_addr: anyone on the path to :1080 can read the "
        "logins of users; SOCKS5 has no TLS, so listen on 127.0.0.1, or use an HTTPS proxy",
        f"{name}: gateway.web.tls_cert: missing: anyone on the path can read the login",
    ]


def test_go_file_of_a_client(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    require_package("yaml")
    options = agent_options(values_of(tmp_path, GO))
    assert (options.id, options.group, options.password) == ("home", "family", "0123")
    assert options.replicas == 3
    assert options.gateways == (Endpoint(("gateway.example.com",), 9091),)
    assert options.tls is not None
    assert options.tls.ca == "certs/server.crt"
    assert options.tls.server_name == ""
    assert options.login == AGENTS
    assert options.rules.allows("example.com", "192.0.2.1", 443)
    assert not options.rules.allows("example.com", "192.168.0.1", 443)
    assert options.open_ports == (
        OpenPort(remote_port=8000, local_host="127.0.0.1", local_port=3000),
        OpenPort(remote_port=8022, local_host="192.168.1.1", local_port=22, protocol="udp"),
    )
    assert options.protocols == {"tcp", "udp"}
    assert options.bind is None
    assert len(caplog.messages) == 1  # about the log


def test_older_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    require_package("yaml")
    options = gateway_options(values_of(tmp_path, OLDER))
    assert options.http is not None
    assert options.socks5 is not None
    assert options.http.login == User("user", "user-password")
    assert (options.http.group, options.http.group_login) == ("default", False)
    # Without a login of its own, the proxy is not open to everyone.
    assert (options.socks5.login, options.socks5.group_login) == (None, True)
    # Clients show the login of agents, but have no password of a group.
    assert options.groups["default"].allow_without_password
    assert not options.default_group.allow_without_password

    agent = agent_options(values_of(tmp_path, OLDER))
    assert (agent.id, agent.group, agent.password) == ("home", "default", "")
    assert agent.gateways == (Endpoint(("127.0.0.1",), 8443),)
    assert agent.tls is not None
    assert agent.tls.ca == "certs/server.crt"
    assert agent.login == AGENTS
    assert agent.open_ports == ()
    name = f"-config: {tmp_path}/config.yaml"
    assert caplog.messages == [
        f"{name}: proxy.http.tls_cert: anyone on the path to :8080 can read the logins of users; "
        "add tls_cert and tls_key, or listen on 127.0.0.1",
        f"{name}: proxy.socks5.listen_addr: anyone on the path to :1080 can read the logins of "
        "users; SOCKS5 has no TLS, so listen on 127.0.0.1, or use an HTTPS proxy",
    ]


def test_older_gateway_without_login_requires_passwords(tmp_path: Path) -> None:
    require_package("yaml")
    text = OLDER.replace('  auth_username: "agents"\n  auth_password: "agents-password"\n', "")
    assert gateway_options(values_of(tmp_path, text)).groups == {}


@pytest.mark.parametrize("text", [GO, OLDER])
def test_formats_are_equal(text: str, tmp_path: Path) -> None:
    yaml = require_package("yaml")
    tree = yaml.load(text, yaml.BaseLoader)
    tree["client"]["open_ports"] = tree["client"]["open_ports"] or []
    toml = "".join(_toml("", tree))
    assert tomllib.loads(toml) == tree
    ends: tuple[Callable[[Values], object], ...] = (gateway_options, without_rules)
    for read in ends:
        first, *others = (
            read(values_of(tmp_path, written, ending))
            for written, ending in ((text, "yaml"), (json.dumps(tree), "json"), (toml, "toml"))
        )
        assert others == [first, first]


def without_rules(values: Values) -> AgentOptions:
    """The options of a client, without the rules, which cannot be compared."""
    return replace(agent_options(values), rules=ALLOW_ALL)


def _toml(path: str, tree: dict[str, object]) -> list[str]:
    tables = {key: value for key, value in tree.items() if isinstance(value, dict)}
    lines = [f"[{path}]\n"] if path else []
    for key, value in tree.items():
        if isinstance(value, list):
            items = [
                "{" + ", ".join(f"{k} = {json.dumps(v)}" for k, v in item.items()) + "}"
                if isinstance(item, dict) else json.dumps(item)
                for item in value
            ]  # fmt: skip
            lines.append(f"{key} = [{', '.join(items)}]\n")
        elif key not in tables:
            lines.append(f"{key} = {json.dumps(value)}\n")
    for key, value in tables.items():
        lines += _toml(f"{path}.{key}" if path else key, value)
    return lines


# The log and the command line.


@pytest.mark.parametrize(
    ("log", "given", "expected"),
    [
        ({}, {}, {"log": "text", "log-level": "info"}),
        ({"level": "warn", "format": "json"}, {}, {"log": "json", "log-level": "warning"}),
        ({"level": "WARNING"}, {}, {"log": "text", "log-level": "warning"}),
        ({"level": "error"}, {"log-level": "debug"}, {"log": "text", "log-level": "debug"}),
        ({"level": "error"}, {"verbose": True}, {"log": "text"}),
        ({"format": "json"}, {"log": "text"}, {"log": "text", "log-level": "info"}),
        ({"output": "stderr"}, {}, {"log": "text", "log-level": "info"}),
    ],
)
def test_command_line_ranks_above_the_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, log: Values, given: Values, expected: Values
) -> None:
    values = values_of(tmp_path, json.dumps({"log": log}), "json", **given)
    assert isinstance(values.pop(TREE), Section)
    del values["config"], values[ENVIRON]
    assert values == {**given, **expected}
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("log", "error"),
    [
        ({"level": "trace"}, "log.level: 'trace' is not one of error, warning, info, debug, warn"),
        ({"format": "xml"}, "log.format: 'xml' is not one of text, json"),
        ({"levle": "info"}, "log.levle: unknown; did you mean level?"),
        ([], "log: not an object with keys"),
    ],
)
def test_errors_about_the_log(tmp_path: Path, log: object, error: str) -> None:
    with pytest.raises(UsageError) as caught:
        values_of(tmp_path, json.dumps({"log": log}), "json")
    assert str(caught.value) == f"-config: {tmp_path}/config.json: {error}"


def test_log_files_are_not_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values_of(tmp_path, '{"log": {"output": "stdout"}}', "json")
    (message,) = caplog.messages
    assert message.endswith(": not used: log.output: the log goes to stderr")


def test_default_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"^-config: cannot read configs/config\.yaml: no such"):
        with_file({}, {})


@pytest.mark.parametrize("dashes", ["-", "--"])
def test_config_is_written_with_one_dash_or_two(dashes: str) -> None:
    assert parse_args(FLAGS, [f"{dashes}config", "x.yaml"]) == {"config": "x.yaml"}
    assert parse_args(FLAGS, [f"{dashes}config=x.yaml"]) == {"config": "x.yaml"}


def test_variables_of_the_environment(tmp_path: Path) -> None:
    text = json.dumps(
        {
            "gateway": {
                "listen_addr": "127.0.0.1:${PORT}",
                "auth_username": "agents",
                "auth_password": "${PASSWORD}",
                "proxy": {"http": {"listen_addr": "127.0.0.1:2"}},
            },
            "client": {"id": "${UNSET}"},  # of the other end, and not looked up
        }
    )
    path = tmp_path / "c.json"
    path.touch(0o600)
    path.write_text(text)
    values = with_file({"config": str(path)}, {"PORT": "81", "PASSWORD": "p: '"})
    options = gateway_options(values)
    assert options.bind == Endpoint(("127.0.0.1",), 81)
    assert options.login == User("agents", "p: '")
    with pytest.raises(UsageError) as caught:
        gateway_options(with_file({"config": str(path)}, {"PORT": "81"}))
    assert str(caught.value) == (
        f"-config: {path}: gateway.auth_password: the environment variable PASSWORD is not set; "
        "set it"
    )


# Anything else.


@pytest.mark.parametrize("text", [GO, OLDER])
def test_mutated_files_raise_usage_errors_only(text: str, tmp_path: Path) -> None:
    require_package("yaml")
    choose = random.Random(text)
    lines = text.splitlines()
    values = (
        "", "0", "-1", "true", "99999999999999999999", "{}", "[]", "[[]]", "{a: b}", "null", "x:1",
        '"\\u2028"', "'[::1]:5'", "wss://[", "http://@", "1h", "*", "(", "[a, {}]", "${X", "${X}",
        "\u00e9", ":", "::1", "1-2", "a|b:1", "'://'", "wss://a:b:c/ws", "sha256/", "10.0.0.0/8",
    )  # fmt: skip
    errors = 0
    for _ in range(100):
        mutated = list(lines)
        for _ in range(choose.randint(1, 3)):
            at = choose.randrange(len(mutated))
            key, colon, _ = mutated[at].partition(":")
            change = choose.random()
            if colon and change < 0.7:
                mutated[at] = f"{key}: {choose.choice(values)}"
            elif change < 0.85:
                mutated[at] = choose.choice(("  ", " ")) + mutated[at]
            else:
                del mutated[at]
        for options in (gateway_options, agent_options):
            try:
                options(values_of(tmp_path, "\n".join(mutated)))
            except UsageError as error:
                errors += 1
                assert "\n" not in str(error)
    assert errors > 50


@pytest.mark.parametrize(
    ("client", "warns"),
    [
        ({"group_password": "secret"}, True),
        ({"gateway": {"auth_password": 123}}, True),
        ({"gateway": {"proxy": "http://user:secret@proxy.corp:3128"}}, True),
        ({"group_password": "${WORD}", "gateway": {"proxy": "http://proxy.corp:3128"}}, False),
    ],
)
def test_file_with_a_password_should_not_be_public(
    client: object, warns: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"client": client}))
    path.chmod(0o644)
    with_file({"config": str(path)}, {"WORD": "x"})
    line = f"-config: every user can read {path}; run chmod o-r on it"
    assert caplog.messages == ([line] if warns else [])
