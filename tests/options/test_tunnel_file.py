"""Configuration files of -config: what is common, what a tunnel has, and errors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mtt.errors import StartError, UsageError
from mtt.options.flags import Flag, Values
from mtt.options.tunnel import CLIENT_FLAGS, SERVER_FLAGS
from mtt.options.tunnel_file import MAX_TUNNELS, TUNNELS, TunnelFile, hidden, with_tunnels
from tests.support.programs import require_package
from tests.support.tunnels import logged

TWO: dict[str, Any] = {
    "s": "example.com:443",
    "wss": True,
    "timeout": "1m",
    "tunnel": [
        {"name": "home", "b": "127.0.0.1:1"},
        {"b": "127.0.0.1:2", "wss": False, "timeout": "2m"},
    ],
}


def write(folder: Path, content: object, name: str = "t.json") -> str:
    path = folder / name
    path.touch(0o600)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def read(
    folder: Path,
    content: object,
    given: Values | None = None,
    environ: Mapping[str, str] | None = None,
    name: str = "t.json",
) -> tuple[Values, TunnelFile]:
    """The options of the process, and the tunnels."""
    path = write(folder, content, name)
    values = with_tunnels(CLIENT_FLAGS, {"config": path} | (given or {}), environ or {})
    file: TunnelFile = values.pop(TUNNELS)
    assert values.pop("config") == path
    return values, file


def error(folder: Path, content: object, **others: Any) -> str:
    """The error, without the name of the file."""
    with pytest.raises(UsageError) as caught:
        read(folder, content, **others)
    text = str(caught.value)
    start = f"-config: {folder}/{others.get('name', 't.json')}: "
    assert text.startswith(start)
    return text.removeprefix(start)


def test_a_file_without_a_list_has_one_tunnel(tmp_path: Path) -> None:
    process, file = read(tmp_path, {"b": ":1", "s": "a:2", "mux-max-stream": 3, "grace": "1s"})
    (tunnel,) = file.tunnels
    assert (tunnel.name, tunnel.place) == ("", "")
    assert tunnel.values == {"b": ":1", "s": "a:2", "mux-max-stream": 3}
    assert process == {"grace": 1.0}


def test_own_keys_replace_common_ones(tmp_path: Path) -> None:
    _, file = read(tmp_path, TWO)
    one, other = file.tunnels
    assert one.values == {"s": "example.com:443", "wss": True, "timeout": 60.0, "b": "127.0.0.1:1"}
    assert other.values == one.values | {"wss": False, "timeout": 120.0, "b": "127.0.0.1:2"}
    assert [each.name for each in file.tunnels] == ["home", ""]
    assert [each.place for each in file.tunnels] == ['tunnel[0] "home"', "tunnel[1]"]


def test_the_command_line_replaces_both(tmp_path: Path) -> None:
    given = {"timeout": 9.0, "log-level": "debug", "check": True, "s": "b:1"}
    process, file = read(tmp_path, TWO | {"log-level": "error"}, given)
    assert process == {"log-level": "debug", "check": True}
    for each in file.tunnels:
        assert each.values.items() >= {"timeout": 9.0, "s": "b:1", "check": True}.items()


@pytest.mark.parametrize(
    ("lower", "higher"),
    [
        ({"b": ":1"}, {"bind-unix": "/x"}),
        ({"p": "x"}, {"password-file": "/x"}),
        ({"cert": "/c", "key": "/k"}, {"cert-dir": "/d"}),
        ({"cert-dir": "/d"}, {"cert": "/c", "key": "/k"}),
    ],
)
def test_an_option_replaces_those_that_it_excludes(
    tmp_path: Path, lower: Values, higher: Values
) -> None:
    path = write(tmp_path, lower | {"d": "a:1"} | {"tunnel": [higher]})
    file: TunnelFile = with_tunnels(SERVER_FLAGS, {"config": path}, {})[TUNNELS]
    assert file.tunnels[0].values == {"d": "a:1"} | higher
    path = write(tmp_path, {"d": "a:1"} | {"tunnel": [lower]})
    file = with_tunnels(SERVER_FLAGS, {"config": path} | higher, {})[TUNNELS]
    assert file.tunnels[0].values == {"d": "a:1"} | higher


def test_the_level_of_the_log_on_the_command_line(tmp_path: Path) -> None:
    process, _ = read(tmp_path, {"log-level": "error"}, {"verbose": True})
    assert process == {"verbose": True}
    process, _ = read(tmp_path, {"verbose": True}, {"log-level": "error"})
    assert process == {"log-level": "error"}


def test_repeatable_options_are_replaced_as_a_whole(tmp_path: Path) -> None:
    content = {"pin": ["a", "b"], "tunnel": [{"b": ":1"}, {"b": ":2", "pin": "c"}]}
    _, file = read(tmp_path, content)
    assert [each.values["pin"] for each in file.tunnels] == [("a", "b"), ("c",)]


def test_limits_of_the_process_and_of_a_tunnel(tmp_path: Path) -> None:
    content = {"max-conns": 9, "workers": 2, "tunnel": [{"b": ":1", "max-conns": 5}, {"b": ":2"}]}
    process, file = read(tmp_path, content)
    assert process == {"max-conns": 9, "workers": 2}
    one, other = (each.values for each in file.tunnels)
    assert one == {"b": ":1", "max-conns": 5, "workers": 2}  # its limit depends on the workers
    assert other == {"b": ":2", "workers": 2}


def test_toml(tmp_path: Path) -> None:
    text = 's = "a:1"\nmux = true\n[[tunnel]]\nname = "x"\nb = ":1"\nmux-warm = 2\n'
    _, file = read(tmp_path, text, name="t.toml")
    assert file.tunnels[0].values == {"s": "a:1", "mux": True, "b": ":1", "mux-warm": 2}


def test_yaml(tmp_path: Path) -> None:
    require_package("yaml")
    text = "s: a:1\nmux: yes\ntunnel:\n- name: x\n  b: :1\n  mux-warm: 2\n"
    _, file = read(tmp_path, text, name="t.yaml")
    assert file.tunnels[0].values == {"s": "a:1", "mux": True, "b": ":1", "mux-warm": 2}


def test_other_names_of_an_option(tmp_path: Path) -> None:
    flags = (Flag("new", "str", "", aliases=("old",)),)
    path = write(tmp_path, {"old": "x"})
    file: TunnelFile = with_tunnels(flags, {"config": path}, {})[TUNNELS]
    assert file.tunnels[0].values == {"new": "x"}
    write(tmp_path, {"new": "x", "old": "x"})
    with pytest.raises(UsageError, match="old: the same as new; remove one"):
        with_tunnels(flags, {"config": path}, {})


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"wsspath": "/"}, 'unknown key "wsspath"; did you mean wss-path?'),
        ({"tunnel": [{}, {"name": "home", "wsspath": "/"}]},
         'tunnel[1] "home": unknown key "wsspath"; did you mean wss-path?'),
        ({"tunnel": [{"-b": ":1"}]}, 'tunnel[0]: unknown key "-b"; did you mean b?'),
        ({"path": "/"}, 'unknown key "path"; write wss and wss-path=PATH'),
        ({"zzzz": 1}, 'unknown key "zzzz"; -h lists the options, which are the keys'),
        ({"insecur": 1}, 'unknown key "insecur"; -h lists the options, which are the keys'),
        ({"tunels": []}, 'unknown key "tunels"; did you mean tunnel?'),
        ({"tunnel": [{"nmae": "x"}]}, 'tunnel[0]: unknown key "nmae"; did you mean name?'),
        ({"config": "x"}, "config: only for the command line; remove it"),
        ({"check": True}, "check: only for the command line; remove it"),
        ({"help": True}, 'unknown key "help"; -h lists the options, which are the keys'),
        ({"timeout": 300}, "timeout: '300' is not a duration; write it with a unit, like 300s, "
         "5m or 1h30m"),
        ({"tunnel": [{"name": "a", "mux-max-stream": True}]},
         'tunnel[0] "a": mux-max-stream: not an integer; write it like 4'),
        ({"mux-max-stream": 1.5}, "mux-max-stream: not an integer; write it like 4"),
        ({"mux": "maybe"}, "mux: 'maybe' is not a boolean; write true or false"),
        ({"b": [":1"]}, "b: a list; write a single value"),
        ({"b": {"port": 1}}, "b: an object; write a single value"),
        ({"b": True}, "b: not text; put it in quotes"),
        ({"ca": ""}, "ca: the value is empty; give FILE, or remove it"),
        ({"log-level": "loud"}, "log-level: 'loud' is not one of error, warning, info, debug"),
        ({"tunnel": [{"grace": "1s"}]},
         "tunnel[0]: grace: a setting of the whole process; move it to the top of the file"),
        ({"tunnel": [{"metrics": "1"}]},
         "tunnel[0]: metrics: a setting of the whole process; move it to the top of the file"),
        ({"tunnel": {"b": ":1"}}, "tunnel: not a list of objects; write [[tunnel]] in TOML, "
         "[{...}] in JSON"),
        ({"tunnel": [1]}, "tunnel[0]: not an object with keys"),
        ({"tunnel": []}, "tunnel: an empty list; describe a tunnel, or remove it"),
        ({"tunnel": [{"name": "x"}, {"name": "y"}, {"name": "x"}]},
         'tunnel[2].name: "x" is the name of tunnel[0], too; change one'),
        ({"tunnel": [{"name": "a\nb"}]},
         "tunnel[0].name: write up to 64 printable characters, without quotes"),
        ({"tunnel": [{}] * (MAX_TUNNELS + 1)}, "tunnel: 1001 tunnels are too many; 1000 at most"),
        ({"tunnel": [{"p": "${WORD}"}]}, "tunnel[0]: p: the environment variable WORD is not set; "
         "set it"),
    ],
)  # fmt: skip
def test_errors_name_the_place(tmp_path: Path, content: object, text: str) -> None:
    assert error(tmp_path, content) == text


def test_options_of_the_other_end_are_unknown(tmp_path: Path) -> None:
    path = write(tmp_path, {"d": "a:1", "preconnect": 1})
    with pytest.raises(UsageError, match='unknown key "preconnect"; the client decides'):
        with_tunnels(SERVER_FLAGS, {"config": path}, {})


# Variables.


def test_variables_of_the_environment(tmp_path: Path) -> None:
    content = {"p": "${WORD}", "wss-path": "$${x}/${A}-${A}", "wss": "${YES}"}
    environ = {"WORD": "a secret", "A": "1", "YES": "true"}
    _, file = read(tmp_path, content, environ=environ)
    assert file.tunnels[0].values == {"p": "a secret", "wss-path": "${x}/1-1", "wss": True}


@pytest.mark.parametrize("key", ["timeout", "mux", "mux-max-stream", "log-level", "b"])
def test_values_of_variables_are_not_shown(tmp_path: Path, key: str) -> None:
    secret = "hunter2'\" 0123456789"
    environ = {"WORD": secret}
    try:
        _, file = read(tmp_path, {key: "${WORD}"}, environ=environ)
        with file.errors("place"):
            raise StartError(f"-b: {file.tunnels[0].values[key]!r} is no address")
    except (UsageError, StartError) as found:
        assert "hunter2" not in str(found)
        assert "${WORD}" in str(found) or "the value" in str(found)


def test_a_part_of_a_long_value_is_not_shown_either() -> None:
    secret = "x1" * 50
    assert hidden(f"-s: '{secret[:80]}...' has no port", {"A": secret}) == (
        "-s: '${A}...' has no port"
    )


def test_the_path_of_the_file_is_shown(tmp_path: Path) -> None:
    text = error(tmp_path, {"mux": "${HOME}/x"}, environ={"HOME": str(tmp_path)})
    assert text == "mux: '${HOME}/x' is not a boolean; write true or false"


def test_short_values_do_not_garble_errors() -> None:
    assert hidden("write it like 443", {"A": "443"}) == "write it like 443"


@pytest.mark.parametrize(
    ("content", "warns"),
    [
        ({"p": "secret"}, True),
        ({"tunnel": [{"p": "secret"}]}, True),
        ({"p": "${WORD}"}, False),
        ({"b": ":1"}, False),
    ],
)
def test_a_file_with_a_secret_should_not_be_public(
    tmp_path: Path, content: object, warns: bool
) -> None:
    path = Path(write(tmp_path, content))
    path.chmod(0o644)
    with logged() as lines:
        read(tmp_path, content, environ={"WORD": "x"})
    expected = f"WARNING -config: every user can read {path}; run chmod o-r on it"
    assert lines == ([expected] if warns else [])


def test_errors_while_completing_options_name_the_tunnel(tmp_path: Path) -> None:
    def complete(values: Values, environ: Mapping[str, str]) -> Values:
        if values["b"] == "127.0.0.1:2":
            raise UsageError("-proxy: no port")
        return values | {"V": bool(environ)}

    path = write(tmp_path, TWO)
    with pytest.raises(UsageError) as caught:
        with_tunnels(CLIENT_FLAGS, {"config": path}, {"A": "b"}, complete)
    assert str(caught.value) == f"-config: {path}: tunnel[1]: -proxy: no port"
