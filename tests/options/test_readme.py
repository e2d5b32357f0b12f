"""README's tables of options and the commands' own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from anytls.options import CLIENT_FLAGS as ANYTLS_CLIENT
from anytls.options import SERVER_FLAGS as ANYTLS_SERVER
from mtt.options.flags import Flag
from mtt.options.tunnel import CLIENT_FLAGS, SERVER_FLAGS
from plugin.options import parse_options

README = (Path(__file__).parents[2] / "README.md").read_text()
OPTION = re.compile(r"`-([A-Za-z][\w-]*)[^`]*`")


def section(heading: str) -> str:
    """What stands below a heading, up to the next one of its level or above."""
    level = heading.count("#")
    rest = README.split(f"\n{heading}\n", 1)[1]
    return re.split(rf"\n#{{1,{level}}} ", rest)[0]


def table(text: str) -> dict[str, tuple[bool, bool]]:
    """The options in the first table of `text`: whether client and server have them."""
    found = {}
    for line in text.splitlines():
        if line.startswith("| `-"):
            cells = [cell.strip() for cell in line.replace("\\|", "").split("|")]
            for name in OPTION.findall(cells[1]):
                found[name] = (cells[2] == "yes", cells[3] == "yes")
    return found


def names(flags: Sequence[Flag]) -> set[str]:
    return {flag.name for flag in flags} - {"help"}


def of(found: dict[str, tuple[bool, bool]], end: int) -> set[str]:
    return {name for name, ends in found.items() if ends[end]}


def test_options_of_the_tunnel_are_in_the_table() -> None:
    found = table(section("## Options"))
    assert of(found, 0) == names(CLIENT_FLAGS)
    assert of(found, 1) == names(SERVER_FLAGS)


def test_options_of_anytls_are_in_the_table() -> None:
    text = section("## AnyTLS").split("\n### Options\n")[1].split("\n### ")[0]
    found = table(text)
    sentence = re.search(r"both have (.*?) of the tunnel,\s+and the\s+server (.*?)\.\n", text, re.S)
    assert sentence is not None
    both, server = (set(OPTION.findall(part)) for part in sentence.groups())
    tunnel = {"version", "h"}  # of every command
    assert of(found, 0) | both | tunnel == names(ANYTLS_CLIENT)
    assert of(found, 1) | both | server | tunnel == names(ANYTLS_SERVER)


@pytest.mark.parametrize("plugin", ["mtt-client", "mtt-server"])
def test_plugin_options_in_the_readme_are_options(plugin: str) -> None:
    (text,) = re.findall(rf'"plugin": "[^"]*{plugin}",\s+"plugin_opts": "([^"]+)"', README)
    assert parse_options(CLIENT_FLAGS if plugin == "mtt-client" else SERVER_FLAGS, text)
