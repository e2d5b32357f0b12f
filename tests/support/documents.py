"""Reads configurations and commands in the documents, for tests."""

from __future__ import annotations

import re
import shlex

from tests.support.processes import ROOT


def document(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def blocks(name: str, language: str) -> list[str]:
    """The fenced blocks of a document in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", document(name), re.M | re.S)


def commands(name: str, program: str) -> list[list[str]]:
    """The arguments of the command lines of `program` in a document."""
    lines = re.findall(rf"^ *{program} (-(?:.*\\\n)*.*)$", document(name), re.M)
    return [shlex.split(line.replace("\\\n", " "), comments=True) for line in lines]


def changed(text: str, changes: dict[str, str]) -> str:
    """`text` with what a test has to change: each is there, and not in what replaces another."""
    for old in changes:
        assert old in text, f"{old!r} is not in the document any more"
    pattern = "|".join(map(re.escape, changes))
    return re.sub(pattern, lambda match: changes[match[0]], text)


def adapted(arguments: list[str], changes: dict[str, str]) -> list[str]:
    """Arguments with other values of some options."""
    found = list(arguments)
    for option, value in changes.items():
        found[found.index(option) + 1] = value
    return found
