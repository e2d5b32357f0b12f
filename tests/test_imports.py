"""The imports of the source: which way they go, and where they may not."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
ENGINE = "mtt"
PLUGIN = "plugin"
PROGRAMS = ("mtt_client", "mtt_server", "mtt_mu_server", "anytls", "anyproxy", PLUGIN)
TOOLS = ("bench", "soak", "tools", "tests")
MAY_BE_PLUGINS = ("mtt_client", "mtt_server")

# What a codec may know of the engine, and what it has no use for: it is pure.
PURE = ("mtt.errors", "mtt.outcome", "mtt.wire")
IMPURE = {"asyncio", "select", "selectors", "socket", "ssl", "threading", "time"}


class Import(NamedTuple):
    where: str  # file:line
    importer: str  # modules, with dots
    imported: str
    typing_only: bool

    def __str__(self) -> str:
        return f"{self.where}: {self.importer} imports {self.imported}"


def source_files(root: Path, *names: str) -> dict[str, Path]:
    """The files of the packages and modules `names` in `root`, by the module's name."""
    files: dict[str, Path] = {}
    for name in names:
        single = root / f"{name}.py"
        for path in [single] if single.exists() else sorted((root / name).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def imports_of(files: dict[str, Path], root: Path) -> list[Import]:
    """All imports in `files`, wherever in a file they stand."""
    return [
        Import(f"{path.relative_to(root)}:{node.lineno}", module, imported, typing_only)
        for module, path in files.items()
        for node, typing_only in _import_nodes(ast.parse(path.read_text()), typing_only=False)
        for imported in _imported(node, files)
    ]


def _import_nodes(
    tree: ast.AST, *, typing_only: bool
) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, typing_only
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for each in node.body:
                yield from _import_nodes(ast.Module([each], []), typing_only=True)
            for each in node.orelse:
                yield from _import_nodes(ast.Module([each], []), typing_only=typing_only)
        else:
            yield from _import_nodes(node, typing_only=typing_only)


def _imported(node: ast.Import | ast.ImportFrom, modules: Iterable[str]) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    assert not node.level, "relative imports are not used here"
    assert node.module is not None
    full = {f"{node.module}.{alias.name}" for alias in node.names}
    return {name if name in modules else node.module for name in full}


def cycles(imports: Iterable[Import], node_of: Callable[[str], str]) -> list[list[Import]]:
    """For each group of nodes that import each other in a circle, the imports inside it."""
    edges: dict[str, set[str]] = {}
    imports = [each for each in imports if node_of(each.importer) != node_of(each.imported)]
    for each in imports:
        edges.setdefault(node_of(each.importer), set()).add(node_of(each.imported))
    reach = {node: _reachable(node, edges) for node in edges}
    groups = {
        frozenset(other for other in reach[node] if node in reach.get(other, ()))
        for node in edges
        if node in reach[node]
    }
    return [
        [each for each in imports if {node_of(each.importer), node_of(each.imported)} <= group]
        for group in groups
    ]


def _reachable(start: str, edges: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    todo = [start]
    while todo:
        new = edges.get(todo.pop(), set()) - found
        found |= new
        todo += new
    return found


FILES = source_files(ROOT, ENGINE, *PROGRAMS)
IMPORTS = imports_of(FILES, ROOT)
RUNTIME = [each for each in IMPORTS if not each.typing_only]


def room(module: str) -> str:
    """What the house is made of: a program, a folder of the engine, or a module loose in it."""
    return ".".join(module.split(".")[: 2 if module.startswith(f"{ENGINE}.") else 1])


def shown(imports: Iterable[Import]) -> str:
    return "\n".join(map(str, imports))


def test_all_of_the_source_is_read() -> None:
    assert {room(module) for module in FILES} >= {*PROGRAMS, "mtt.wire", "mtt.errors"}
    inner = next(each for each in IMPORTS if each.imported == "anytls.client")
    assert inner.importer == "anytls.client_command"  # in a function


@pytest.mark.parametrize("name", ["modules", "rooms"])
def test_no_circles(name: str) -> None:
    known = [each for each in RUNTIME if each.imported in FILES]
    found = cycles(known, room if name == "rooms" else str)
    assert not found, "\n\n".join(map(shown, found))


def test_no_circles_of_modules_even_for_types() -> None:
    found = cycles([each for each in IMPORTS if each.imported in FILES], str)
    assert not found, "\n\n".join(map(shown, found))


def test_engine_knows_no_program() -> None:
    wrong = [
        each for each in IMPORTS
        if room(each.importer).startswith(ENGINE + ".") and room(each.imported) in PROGRAMS
    ]  # fmt: skip
    assert not wrong, shown(wrong)


def test_source_knows_no_tools() -> None:
    wrong = [each for each in IMPORTS if room(each.imported) in TOOLS]
    assert not wrong, shown(wrong)


def test_programs_do_not_know_each_other() -> None:
    wrong = [
        each for each in IMPORTS
        if (importer := room(each.importer)) in PROGRAMS
        and (imported := room(each.imported)) in PROGRAMS
        and importer != imported
        and not (importer in MAY_BE_PLUGINS and imported == PLUGIN)
    ]  # fmt: skip
    assert not wrong, shown(wrong)


def test_codecs_are_pure() -> None:
    wrong = [
        each for each in IMPORTS
        if room(each.importer) == "mtt.wire"
        and (each.imported.partition(".")[0] in IMPURE
             or (each.imported in FILES and room(each.imported) not in PURE))
    ]  # fmt: skip
    assert not wrong, shown(wrong)


def test_codecs_load_nothing_impure() -> None:
    """Nor does what they import; `time` is there from the interpreter's start."""
    names = [module for module in FILES if room(module) == "mtt.wire"]
    program = (
        "import importlib, sys\n"
        f"for name in {names}: importlib.import_module(name)\n"
        f"print(*sorted({IMPURE - {'time'}} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    assert done.stdout.split() == []


def test_engine_does_not_read_how_it_was_started() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}"
        for module, path in FILES.items()
        if module.startswith(ENGINE + ".")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and ast.unparse(node) in ("sys.argv", "os.environ", "os.environb", "os.getenv")
    ]
    assert not wrong, "\n".join(wrong)


def test_a_circle_is_named_by_file_and_line(tmp_path: Path) -> None:
    def write(name: str, text: str) -> None:
        path = tmp_path / "house" / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    write("__init__", "")
    write("a", "import os\nfrom house import b\n")
    write("b", "def f():\n    import house.c as c\n")
    write("c", "try:\n    from house.a import x\nexcept ImportError:\n    pass\n")
    write("d", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house import a, e\n")
    write("e", "from house import a, d\n")
    files = source_files(tmp_path, "house")
    imports = [each for each in imports_of(files, tmp_path) if each.imported in files]
    (circle,) = cycles([each for each in imports if not each.typing_only], str)
    assert [str(each) for each in circle] == [
        "house/a.py:2: house.a imports house.b",
        "house/b.py:2: house.b imports house.c",
        "house/c.py:2: house.c imports house.a",
    ]
    assert len(cycles(imports, str)) == 2  # with d and e
