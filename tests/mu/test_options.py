"""The command line of mtt-mu-server, and what keeps it from starting."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mtt import __version__
from mtt.address import Endpoint
from mtt.errors import UsageError
from mtt.options.flags import parse_args
from mtt.process.command import Start
from mtt.trust.tls_options import ServerTls
from mtt.wire import alpn
from mtt_mu_server.__main__ import COMMAND, service
from mtt_mu_server.management import MAX_TOKEN_LENGTH, MIN_TOKEN_LENGTH, read_token
from mtt_mu_server.options import FLAGS, options
from mtt_mu_server.server import MultiUserServer
from tests.support.certs import Certs
from tests.support.processes import clean_environment

GIVEN = {"b": ":443", "c": "127.0.0.1:8080"}


def test_defaults() -> None:
    checked = options(GIVEN)
    assert checked.timeout == 60
    assert checked.bind == Endpoint(("",), 443)
    assert checked.controller == Endpoint(("127.0.0.1",), 8080)
    assert not (checked.mux or checked.db or checked.metrics_users)
    assert checked.tls == ServerTls(alpn=alpn.SITE)


def test_all_flags_of_the_original_exist() -> None:
    names = {flag.name for flag in FLAGS}
    assert names >= {"b", "bind-unix", "c", "mux", "timeout", "cert", "key", "disable-tls", "n",
                     "fast-open", "verbose"}  # fmt: skip


def test_the_controllers_address() -> None:
    assert options(GIVEN | {"c": "unix:/run/c.sock"}).controller_unix == "/run/c.sock"
    assert options(GIVEN | {"c": "unix:/run/c.sock"}).controller is None
    assert options(GIVEN | {"c": "localhost:1"}).controller == Endpoint(("127.0.0.1",), 1)
    assert options(GIVEN | {"c": "127.9.9.9|[::1]:1"}).controller is not None
    public = {"c": "192.0.2.1:1", "c-token-file": "t", "c-cert": "c", "c-key": "k"}
    assert options(GIVEN | public).controller == Endpoint(("192.0.2.1",), 1)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"b": ""}, "-b is missing"),
        ({"c": ""}, "-c is missing"),
        ({"bind-unix": "/x"}, "exclude each other"),
        ({"timeout": 0.0}, "-timeout"),
        ({"cert": "x"}, "-key"),
        ({"c-cert": "x"}, "-c-key"),
        ({"c-key": "x"}, "-c-cert"),
        ({"c": "127.0.0.1"}, "-c: "),
        ({"c": "unix:"}, "no path"),
        ({"c": "unix:@abstract"}, "no path"),
        ({"c": ":8080"}, "-c-token-file, -c-cert, -c-key"),
        ({"c": "0.0.0.0:8080"}, "other machines"),
        ({"c": "[::]:8080"}, "other machines"),
        ({"c": "127.0.0.1|192.0.2.1:8080"}, "other machines"),
        ({"c": "panel.example:8080"}, "other machines"),
        ({"c": "192.0.2.1:8080", "c-token-file": "t"}, "-c-cert, -c-key"),
        ({"c": "192.0.2.1:8080", "c-cert": "c", "c-key": "k"}, "-c-token-file"),
    ],
)
def test_errors(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        options(GIVEN | given)
    assert words in str(caught.value)


def test_the_command_makes_a_server() -> None:
    argv = ["-b", "127.0.0.1:0", "-c", "127.0.0.1:0", "-disable-tls", "-mux"]
    assert isinstance(service(parse_args(COMMAND.flags, argv), Start()), MultiUserServer)


def run(*argv: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "mtt_mu_server", *argv], cwd=Path(__file__).parents[2],
        env=clean_environment(), capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_version_help_and_errors_of_the_program(tmp_path: Path) -> None:
    assert run("-version") == (0, f"mtt-mu-server {__version__}\n", "")
    code, out, err = run("-h")
    assert (code, err) == (0, "")
    assert "-c HOST:PORT" in out
    code, out, err = run("-b", ":1")
    assert (code, out) == (2, "")
    assert err.startswith("mtt-mu-server: -c is missing")
    bad = tmp_path / "bad.sqlite"
    bad.touch(0o600)
    bad.write_bytes(os.urandom(2000))
    code, out, err = run("-b", "127.0.0.1:0", "-c", "127.0.0.1:0", "-disable-tls", "-db", str(bad))
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "is damaged" in err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "has fewer than 16"),
        (b"short\n", "has fewer than 16"),
        (b"x" * 5000, "too many"),
        (b"two words in one file\n", "one token"),
        (b"0123456789abcdef\nsecond line\n", "one token"),
        ("0123456789abcdef\u00e4".encode(), "not text"),
    ],
)
def test_bad_token_files(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read_token(str(path))
    assert words in str(caught.value)
    assert "0123456789abcdef" not in str(caught.value)


def test_token_file(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("  0123456789abcdef\r\n")
    path.chmod(0o600)
    assert read_token(str(path)) == "0123456789abcdef"
    for size, fits in ((MIN_TOKEN_LENGTH, True), (MIN_TOKEN_LENGTH - 1, False),
                       (MAX_TOKEN_LENGTH, True), (MAX_TOKEN_LENGTH + 1, False)):  # fmt: skip
        path.write_text("a" * size)
        with contextlib.nullcontext() if fits else pytest.raises(UsageError, match="characters"):
            assert read_token(str(path)) == "a" * size
    path.write_text("0123456789abcdef")
    with pytest.raises(UsageError, match="no such file"):
        read_token(str(tmp_path / "other"))


@pytest.mark.parametrize(("mode", "lines"), [(0o600, 0), (0o640, 1), (0o604, 1)])
def test_readable_token_file_causes_a_warning(
    mode: int, lines: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "token"
    path.write_text("0123456789abcdef")
    path.chmod(mode)
    read_token(str(path))
    assert [record.getMessage() for record in caplog.records] == lines * [
        f"-c-token-file: others may read {path}; run chmod 600 on it"
    ]


def test_certificate_errors_name_the_controllers_options(certs: Certs, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("0123456789abcdef")
    given = {"c": "0.0.0.0:0", "c-token-file": str(token), "c-cert": certs.cert,
             "c-key": certs.other_key, "disable-tls": True}  # fmt: skip
    with pytest.raises(UsageError, match=r"-c-key: .* does not belong"):
        MultiUserServer(options(GIVEN | given))
