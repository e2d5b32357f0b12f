from __future__ import annotations

import pytest

from mtt.address import Endpoint
from mtt.errors import UsageError
from plugin.sip003 import read_environment

FULL = {
    "SS_REMOTE_HOST": "example.com",
    "SS_REMOTE_PORT": "443",
    "SS_LOCAL_HOST": "127.0.0.1",
    "SS_LOCAL_PORT": "1080",
}


def test_not_a_plugin_without_the_variables() -> None:
    assert read_environment({"PATH": "/bin", "SS_OTHER": "1"}) is None


def test_all_variables() -> None:
    found = read_environment({**FULL, "SS_PLUGIN_OPTIONS": "wss;n=a"})
    assert found is not None
    assert found.local == Endpoint(("127.0.0.1",), 1080)
    assert found.remote == Endpoint(("example.com",), 443)
    assert found.options == "wss;n=a"


@pytest.mark.parametrize("extra", [{}, {"SS_PLUGIN_OPTIONS": ""}])
def test_options_are_optional(extra: dict[str, str]) -> None:
    found = read_environment(FULL | extra)
    assert found is not None
    assert found.options == ""


@pytest.mark.parametrize(
    ("host", "hosts"),
    [
        ("::1", ("::1",)),
        ("[::1]", ("::1",)),
        ("192.0.2.1|2001:db8::1|example.com", ("192.0.2.1", "2001:db8::1", "example.com")),
    ],
)
def test_hosts(host: str, hosts: tuple[str, ...]) -> None:
    found = read_environment({**FULL, "SS_REMOTE_HOST": host})
    assert found is not None
    assert found.remote == Endpoint(hosts, 443)


@pytest.mark.parametrize("missing", FULL)
def test_missing_variables_are_named(missing: str) -> None:
    for environ in (
        {name: value for name, value in FULL.items() if name != missing},
        {**FULL, missing: ""},
    ):
        with pytest.raises(UsageError, match=f"without {missing};"):
            read_environment(environ)


def test_options_alone_are_an_error() -> None:
    with pytest.raises(UsageError) as caught:
        read_environment({"SS_PLUGIN_OPTIONS": ""})
    assert f"without {', '.join(FULL)};" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SS_REMOTE_PORT", "https"),
        ("SS_REMOTE_PORT", "65536"),
        ("SS_LOCAL_PORT", "-1"),
        ("SS_LOCAL_HOST", "a b"),
        ("SS_REMOTE_HOST", "example.com:443"),
    ],
)
def test_invalid_values_name_the_variable(name: str, value: str) -> None:
    with pytest.raises(UsageError, match=name):
        read_environment({**FULL, name: value})
