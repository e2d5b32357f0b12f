"""The documents and examples of the configuration file are complete, and can be used."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from anyproxy.client_config import agent_options
from anyproxy.config import TREE, with_file
from anyproxy.gateway_config import gateway_options
from mtt.options.section import Section
from mtt.options.tree import read_tree
from tests.support.programs import require_package

ROOT = Path(__file__).parents[2]
ENVIRON = {"AGENTS_PASSWORD": "a", "GROUP_PASSWORD": "b"}

EVERY_SECTION: dict[str, Any] = {
    "log": {},
    "gateway": {
        "listen_addr": "127.0.0.1:1",
        "proxy": {"http": {"listen_addr": "127.0.0.1:2"}, "socks5": {}, "tuic": {}},
        "credential": {"db": {}},
        "ports": {},
        "groups": {"NAME": {}},
    },
    "client": {
        "id": "x",
        "group_id": "y",
        "gateway": {"addr": "127.0.0.1:1"},
        "open_ports": [{"remote_port": 1, "local_port": 2}],
    },
}


def test_documents_list_all_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    read: set[str] = set()
    sections: set[str] = set()
    done = Section.done

    def recorded(section: Section) -> None:
        sections.add(section.path)
        read.update(section.where(key) for key in section._known)
        done(section)

    monkeypatch.setattr(Section, "done", recorded)
    path = tmp_path / "c.json"
    path.touch(0o600)
    path.write_text(str(EVERY_SECTION).replace("'", '"'))
    for options in (gateway_options, agent_options):
        options(with_file({"config": str(path)}, {}))
    above = {"client", "client.open_ports", "gateway.groups", "proxy", "transport"}
    keys = {key for key in read - sections - above if not key.startswith("transport.")}
    text = (ROOT / "docs" / "anyproxy.md").read_text()
    rows = re.findall(r"^\| (`(?:log|gateway|client)\.[^|]*) \|", text, re.M)
    listed = {key for row in rows for key in re.findall(r"`([^`]+)`", row)}
    assert {key.replace("[0]", "[]") for key in keys} == listed


def test_example_of_a_gateway(caplog: pytest.LogCaptureFixture) -> None:
    require_package("yaml")
    options = gateway_options({TREE: read_tree("", str(ROOT / "examples/gateway.yaml"), ENVIRON)})
    assert options.login is not None
    assert options.login.password == "a"
    assert options.groups["home"].ports == (range(2222, 2223), range(8000, 8100))
    assert options.groups["office"].rate == 10**7
    assert options.default_group.ports == ()
    assert "not used" not in caplog.text


def test_example_of_a_client(caplog: pytest.LogCaptureFixture) -> None:
    require_package("yaml")
    options = agent_options({TREE: read_tree("", str(ROOT / "examples/client.yaml"), ENVIRON)})
    assert options.tls is not None
    assert [port.remote_port for port in options.open_ports] == [2222]
    assert options.rules.allows("nas.lan", "192.168.1.20", 443)
    assert not options.rules.allows("192.168.1.1", "192.168.1.1", 443)
    assert options.rules.warnings == ()
    assert "not used" not in caplog.text
