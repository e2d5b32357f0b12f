"""The errors of codecs: one family for what peers break, ValueError for misuse."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil

import pytest

import mtt.wire
from mtt.errors import PeerError
from mtt.wire.errors import WireError

MODULES = [f"mtt.wire.{module.name}" for module in pkgutil.iter_modules(mtt.wire.__path__)]


def errors_of(module: str) -> list[type[Exception]]:
    """The exceptions that a module defines."""
    return [
        each
        for _, each in inspect.getmembers(importlib.import_module(module), inspect.isclass)
        if issubclass(each, Exception) and each.__module__ == module
    ]


FAMILY = [error for module in MODULES for error in errors_of(module)]


def test_codec_errors_share_a_base_class() -> None:
    assert len(FAMILY) > 10
    for error in FAMILY:
        assert issubclass(error, WireError), error
        assert not issubclass(error, ValueError), error
    assert issubclass(WireError, PeerError)


@pytest.mark.parametrize("module", MODULES)
def test_codecs_raise_only_wire_errors(module: str) -> None:
    raised = _raised(inspect.getsource(importlib.import_module(module)))
    assert raised <= {*(error.__name__ for error in FAMILY), "ValueError"}


def _raised(source: str) -> set[str]:
    """The names of what a module raises; errors that are raised again do not count."""
    nodes = [node.exc for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Raise)]
    return {
        ast.unparse(node.func if isinstance(node, ast.Call) else node)
        for node in nodes
        if node is not None
    }
