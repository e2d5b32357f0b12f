"""Reads a Containerfile, and follows its steps in systems of `roots`."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.packaging.roots import Root
from tests.support.processes import Process
from tools.project import TOP

_INSTRUCTION = re.compile(r"([A-Z]+)\s+((?:--[a-z-]+(?:=\S+)?\s+)*)(.*)", re.S)


class Instruction(NamedTuple):
    name: str
    options: dict[str, str]
    value: str


def read_containerfile(text: str) -> list[Instruction]:
    """The instructions, without comments and continuation lines."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    found = []
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        match = _INSTRUCTION.fullmatch(line)
        assert match is not None, line
        options = dict(option.lstrip("-").partition("=")[::2] for option in match[2].split())
        found.append(Instruction(match[1], options, match[3].strip()))
    return found


def ignored() -> list[str]:
    """The patterns of .dockerignore, for names at any depth."""
    lines = (TOP / ".dockerignore").read_text().split()
    return [line.removeprefix("**/") for line in lines]


class Build:
    """Follows the instructions; `new_root` starts each stage."""

    def __init__(self, new_root: Callable[[], Root]) -> None:
        self._new_root = new_root
        self._stages: dict[str, Root] = {}
        self.directory = "/"
        self.user = ""
        self.command: list[str] = []
        self.check: list[str] = []

    @property
    def root(self) -> Root:
        return list(self._stages.values())[-1]

    def follow(self, instructions: list[Instruction]) -> None:
        for instruction in instructions:
            getattr(self, f"_{instruction.name.lower()}")(instruction)

    def _from(self, instruction: Instruction) -> None:
        name = instruction.value.partition(" AS ")[2] or str(len(self._stages))
        self._stages[name] = self._new_root()
        self.directory, self.user = "/", ""

    def _run(self, instruction: Instruction) -> None:
        assert not self.user
        self.root.run(f"cd {self.directory} && {instruction.value}", seconds=300)

    def _workdir(self, instruction: Instruction) -> None:
        self.directory = instruction.value
        self.root.run(f"mkdir -p {self.directory}")

    def _copy(self, instruction: Instruction) -> None:
        *sources, target = instruction.value.split()
        if stage := instruction.options.get("from"):
            upper = self._stages[stage].upper
            paths = [path for source in sources for path in upper.glob(source.lstrip("/"))]
        else:
            paths = [TOP / source for source in sources]
        assert paths
        for path in paths:
            self.root.unpack(_archive(path), f"{self.directory}/{target}")

    def _user(self, instruction: Instruction) -> None:
        self.user = instruction.value

    def _expose(self, instruction: Instruction) -> None:
        assert instruction.value.isdigit()

    def _healthcheck(self, instruction: Instruction) -> None:
        self.check = json.loads(instruction.value.removeprefix("CMD "))

    def _cmd(self, instruction: Instruction) -> None:
        self.command = json.loads(instruction.value)

    def as_user(self, argv: list[str]) -> str:
        """A shell command that runs `argv` as the container does."""
        uid, _, gid = self.user.partition(":")
        return (
            f"env -C {self.directory} setpriv --reuid={uid} --regid={gid} --clear-groups "
            f"--no-new-privs --bounding-set=-all {shlex.join(argv)}"
        )

    def start(self, *argv: str) -> Process:
        return self.root.start(self.as_user(list(argv)))


def _archive(path: Path) -> bytes:
    """A tar archive of a file, or of what is in a directory."""
    raw = io.BytesIO()
    skip = shutil.ignore_patterns(*ignored())

    def kept(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        member.uid = member.gid = 0
        name = Path(member.name).name
        return None if name and skip("", [name]) else member

    with tarfile.open(fileobj=raw, mode="w") as archive:
        archive.add(path, "." if path.is_dir() else path.name, filter=kept)
    return raw.getvalue()
