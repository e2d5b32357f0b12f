"""git reaches repositories behind an agent through the HTTP proxy of a gateway."""

from __future__ import annotations

import subprocess
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import quote

from tests.real.destinations import MB, payload
from tests.real.gateways import LOGIN, Network
from tests.support.processes import clean_environment
from tests.support.programs import require_program

NO_CONFIGURATION = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
IDENTITY = {
    f"GIT_{role}_{what}": value
    for role in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "A user"), ("EMAIL", "user@test.local"))
}


def git(network: Network, directory: Path, *arguments: str | Path) -> str:
    """Run git in a directory, as a user of the HTTP proxy."""
    user, _, password = LOGIN.partition(":")
    proxy = f"http://{quote(user)}:{quote(password)}@127.0.0.1:{network.plain.http}"
    return git_without_proxy(directory, "-c", f"http.proxy={proxy}", *arguments)


def git_without_proxy(directory: Path, *arguments: str | Path) -> str:
    done = subprocess.run(
        [require_program("git"), *map(str, arguments)],
        cwd=directory, env=clean_environment(**NO_CONFIGURATION, **IDENTITY), check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout.decode()
    return done.stdout.decode()


def make_repository(directory: Path) -> Path:
    """A bare repository with two commits."""
    work = directory / "work"
    work.mkdir()
    git_without_proxy(work, "init", "--quiet", "--initial-branch", "main")
    for number in (1, 2):
        (work / "file").write_bytes(payload(number * MB))
        git_without_proxy(work, "add", "file")
        git_without_proxy(work, "commit", "--quiet", "--message", f"commit {number}")
    bare = directory / "repository.git"
    git_without_proxy(directory, "clone", "--quiet", "--bare", work, bare)
    return bare


def test_git_clones_from_plain_files(network: Network, tmp_path: Path) -> None:
    bare = make_repository(tmp_path)
    git_without_proxy(bare, "update-server-info")
    bare.rename(network.site / "repository.git")
    git(network, tmp_path, "clone", "--quiet", network.url("repository.git"), "copy")
    assert (tmp_path / "copy" / "file").read_bytes() == payload(2 * MB)


def test_git_clones_fetches_and_pushes(network: Network, tmp_path: Path) -> None:
    bare = make_repository(tmp_path)
    git_without_proxy(bare, "config", "http.receivepack", "true")
    with GitServer(tmp_path) as server:
        thread = Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_address[1]}/repository.git"
            for name in ("copy", "other"):
                git(network, tmp_path, "clone", "--quiet", url, name)
            copy, other = tmp_path / "copy", tmp_path / "other"
            assert (copy / "file").read_bytes() == payload(2 * MB)
            (copy / "file").write_bytes(payload(3 * MB))
            git_without_proxy(copy, "commit", "--quiet", "--all", "--message", "commit 3")
            # More than git's buffer, so it sends chunks.
            git(network, copy, "-c", "http.postBuffer=65536", "push", "--quiet", "origin", "main")
            git(network, other, "pull", "--quiet")
            assert (other / "file").read_bytes() == payload(3 * MB)
        finally:
            server.shutdown()
            thread.join()


class GitServer(ThreadingHTTPServer):
    """Serves the repositories of a directory with git's CGI program."""

    daemon_threads = True

    def __init__(self, directory: Path) -> None:
        super().__init__(("127.0.0.1", 0), _GitHandler)
        self.directory = directory


class _GitHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: GitServer

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        body = self._body()
        environment = clean_environment(
            GIT_PROJECT_ROOT=str(self.server.directory),
            GIT_HTTP_EXPORT_ALL="1",
            GIT_PROTOCOL=self.headers.get("Git-Protocol", ""),
            HTTP_CONTENT_ENCODING=self.headers.get("Content-Encoding", ""),
            REQUEST_METHOD=self.command,
            PATH_INFO=path,
            QUERY_STRING=query,
            CONTENT_TYPE=self.headers.get("Content-Type", ""),
            CONTENT_LENGTH=str(len(body)),
            REMOTE_USER="user",
            REMOTE_ADDR=self.client_address[0],
        )
        answer = subprocess.run(
            [require_program("git"), "http-backend"],
            input=body, env=environment, stdout=subprocess.PIPE, check=True,
        ).stdout  # fmt: skip
        head, _, content = answer.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        self.send_response(int(headers.pop("Status", "200").split()[0]))
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", "0")))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def log_message(self, *_args: object) -> None:
        """Log nothing."""
