"""The Containerfile: its rules, its health check, and its steps in a fresh Debian."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.packaging.containers import Build, Instruction, read_containerfile
from tests.packaging.roots import Root, asked
from tests.support.processes import Processes, eventually, free_port
from tools.project import TOP, read_project

HEALTH = TOP / "contrib" / "container-health"
INSTRUCTIONS = read_containerfile((TOP / "Containerfile").read_text())


def values(name: str) -> list[str]:
    return [found.value for found in INSTRUCTIONS if found.name == name]


def final_stage() -> list[Instruction]:
    start = max(n for n, found in enumerate(INSTRUCTIONS) if found.name == "FROM")
    return INSTRUCTIONS[start:]


def test_reader() -> None:
    text = "# x\nFROM a:1 AS b\n\nRUN one \\\n# -\n    && two\nCOPY --from=b --chmod=755 x y\n"
    assert read_containerfile(text) == [
        ("FROM", {}, "a:1 AS b"), ("RUN", {}, "one      && two"),
        ("COPY", {"from": "b", "chmod": "755"}, "x y"),
    ]  # fmt: skip


def test_bases_are_slim_and_of_a_date() -> None:
    bases = {value.partition(" AS ")[0] for value in values("FROM")}
    assert len(bases) == 1
    assert re.fullmatch(r"docker\.io/library/debian:[a-z]+-\d{8}-slim", bases.pop())


def test_does_not_run_as_root() -> None:
    names = [found.name for found in final_stage()]
    user = final_stage()[names.index("USER")].value
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", user)
    assert "RUN" not in names[names.index("USER") :]


def test_apt_leaves_no_recommended_packages_or_lists() -> None:
    for command in values("RUN"):
        if "apt-get install" in command:
            assert "apt-get update" in command
            assert "--yes --no-install-recommends" in command
    (installs,) = [
        found.value for found in final_stage() if "apt-get install" in found.value
    ]
    assert "rm -rf /tmp/*.deb /var/lib/apt/lists/*" in installs


def test_nothing_is_downloaded_but_packages() -> None:
    assert not values("ADD")
    assert not [value for value in values("RUN") if re.search(r"curl|wget|pip|https?:", value)]


def test_copied_files_exist() -> None:
    for found in INSTRUCTIONS:
        if found.name == "COPY" and "from" not in found.options:
            for source in found.value.split()[:-1]:
                assert (TOP / source).exists()


def test_command_and_health_check() -> None:
    assert json.loads(values("CMD")[0])[0] in read_project().commands
    assert values("HEALTHCHECK") == ['CMD ["container-health"]']
    assert os.access(HEALTH, os.X_OK)


# The health check.


def health(port: int) -> int:
    done = subprocess.run(
        [sys.executable, "-I", HEALTH], env={"HEALTH_PORT": str(port)}, check=False, timeout=20,
        capture_output=True,
    )  # fmt: skip
    return done.returncode


@contextlib.contextmanager
def answering(status: int) -> Iterator[int]:
    """A server that answers requests of /healthz with `status`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/healthz" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1), (404, 1)])
def test_health_follows_the_answer(status: int, code: int) -> None:
    with answering(status) as port:
        assert health(port) == code


def test_health_without_metrics(refused_port: int) -> None:
    assert health(refused_port) == 0


def test_health_without_an_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def close() -> None:
            server.accept()[0].close()

        thread = threading.Thread(target=close)
        thread.start()
        assert health(server.getsockname()[1]) == 1
        thread.join()


# Its steps.


@asked
@pytest.mark.deadline(600)
@pytest.mark.parametrize("base", ["bookworm"], indirect=True)
def test_steps_make_a_container_that_works(
    base: Path, tmp_path: Path, processes: Processes
) -> None:
    stages = iter(range(10))

    def new_root() -> Root:
        directory = tmp_path / f"stage{next(stages)}"
        directory.mkdir()
        return Root(base, directory, processes, network=True)

    build = Build(new_root)
    build.follow(INSTRUCTIONS)
    usage = build.start(*build.command)
    assert "mtt-server" in usage.expect_silence()
    root, metrics = build.root, free_port()
    server = build.start("mtt-server", "-b", "127.0.0.1:0", "-d", "127.0.0.1:9", "-cert-dir", ".",
                         "-metrics", str(metrics))  # fmt: skip
    server.expect("listening on")
    assert root.run("stat -c %u /var/lib/mtt/*").split() == ["65532"] * 2
    check = f"HEALTH_PORT={metrics} {build.as_user(build.check)}"
    assert root.attempt(check) == (0, "")
    os.killpg(server.pid, signal.SIGSTOP)
    assert root.attempt(check)[0] == 1
    os.killpg(server.pid, signal.SIGCONT)
    eventually(lambda: root.attempt(check)[0] == 0, "it is healthy again")
    server.kill()
    assert root.attempt(check)[0] == 0
