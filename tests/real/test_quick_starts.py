"""The first command lines of README and of some documents, with addresses of this machine."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from tests.real.destinations import PAGE, Site
from tests.support.documents import adapted, commands, document
from tests.support.processes import Process, Processes, listening, run
from tests.support.programs import require_program

README = "../README.md"
# Options whose files are in the current directory.
OF_FILES = ("-cert-dir", "-password-file")


class Scene:
    """Runs the first line of each command in a page."""

    def __init__(self, page: str, processes: Processes, directory: Path) -> None:
        self._page = page
        self._processes = processes
        self._directory = directory

    def start(self, name: str, places: dict[str, str], *more: str) -> Process:
        """Start a command with other values for its options, and `more` options."""
        arguments = [*commands(self._page, name)[0], *more]
        files = {
            option: str(self._directory / path)
            for option, path in itertools.pairwise(arguments) if option in OF_FILES
        }  # fmt: skip
        return self._processes.command(name, *adapted(arguments, places | files))


@pytest.mark.parametrize("page", [README, "trust.md", "anytls.md"])
def test_a_tunnel_with_a_pin(page: str, processes: Processes, site: Site, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("secret\n")
    (tmp_path / "password").chmod(0o600)
    scene = Scene(page, processes, tmp_path)
    server = scene.start("mtt-server", {"-b": "127.0.0.1:0", "-d": site.address})
    pin = server.expect(r"pin (sha256/\S+)")[1]
    address = f"127.0.0.1:{listening(server)[1]}"
    client = scene.start("mtt-client", {"-b": "127.0.0.1:0", "-s": address, "-pin": pin})
    url = f"http://127.0.0.1:{listening(client)[1]}/"
    assert run(require_program("curl"), "-sSf", url) == PAGE


def test_readme_shows_the_line_that_the_server_logs(processes: Processes, tmp_path: Path) -> None:
    (shown,) = re.findall(r"^    \S+ \S+ (INFO mtt-server: .*)$", document(README), re.M)
    server = Scene(README, processes, tmp_path).start("mtt-server", {"-b": "127.0.0.1:0"})
    logged = server.expect(r"INFO mtt-server: .* pin \S+")[0]
    values = r"\S+:\d+|(?<= for )\w+\.\w+|\d+-\d+-\d+|sha256/\S+"
    assert re.sub(values, "*", logged) == re.sub(values, "*", shown)


def test_an_anytls_proxy(processes: Processes, site: Site, tmp_path: Path) -> None:
    page = "anytls.md"
    curl = require_program("curl")
    (make,) = re.findall(r"^    (openssl rand .*)$", document(page), re.M)
    run("sh", "-ec", f"cd '{tmp_path}' && {make}")
    assert (tmp_path / "password").stat().st_mode & 0o777 == 0o600
    scene = Scene(page, processes, tmp_path)
    server = scene.start("anytls-server", {}, "-b", "127.0.0.1:0", "-allow", "127.0.0.1/32")
    pin = server.expect(r"pin (sha256/\S+)")[1]
    places = {"-s": f"127.0.0.1:{listening(server)[1]}", "-pin": pin}
    client = scene.start("anytls-client", places, "-b", "127.0.0.1:0")
    (option,) = re.findall(r"^    curl (--\S+) 127\.0\.0\.1:1080 ", document(page), re.M)
    proxy = f"127.0.0.1:{listening(client)[1]}"
    assert run(curl, "-sSf", option, proxy, f"http://{site.address}/") == PAGE
    assert "WARNING" not in server.output + client.output
