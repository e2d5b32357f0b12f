"""The Debian package, unpacked: what is in it, and that its commands run."""

from __future__ import annotations

import configparser
import gzip
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from mtt.options.flags import parse_args
from mtt.version import __version__
from tests.support.programs import require_program
from tests.test_documents import FLAGS
from tools import deb
from tools.project import TOP, ProjectError, files_below, read_project, run

PROJECT = read_project()
PRIVATE = f"usr/share/{PROJECT.name}"


@pytest.fixture(scope="session")
def tree(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package's files below one directory, its control files in DEBIAN."""
    path = tmp_path_factory.mktemp("unpacked") / "tree"
    run(["dpkg-deb", "--raw-extract", str(package), str(path)])
    return path


def files(tree: Path, below: str) -> list[str]:
    return [path.relative_to(tree / below).as_posix() for path in files_below(tree / below)]


def suggested() -> list[str]:
    """Debian's packages of the extras that users install."""
    setup = configparser.ConfigParser()
    setup.read(TOP / "setup.cfg")
    extras = dict(setup["options.extras_require"])
    users = [extras[name] for name in extras if name not in ("test", "peers", "dev", "dist")]
    names = {re.split(r"[;>= ]", line.strip().lower())[0] for line in "\n".join(users).split("\n")}
    return sorted(f"python3-{name.removeprefix('py')}" for name in names if name)


def test_name_and_fields(package: Path) -> None:
    assert package.name == f"mos-tls-tunnel_{__version__}_all.deb"
    text = run(["dpkg-deb", "--field", str(package)])
    fields = dict(re.findall(r"^(\S+): (.*)$", text, re.M))
    assert fields["Package"] == "mos-tls-tunnel"
    assert fields["Version"] == __version__
    assert fields["Depends"] == "python3 (>= 3.11), python3-cryptography (>= 38)"
    assert fields["Suggests"].split(", ") == suggested()
    assert "@" not in text.replace(PROJECT.maintainer, "")


def test_same_source_gives_same_bytes(package: Path, tmp_path: Path) -> None:
    umask = os.umask(0o077)
    try:
        (again,) = deb.build(tmp_path)
    finally:
        os.umask(umask)
    assert again.read_bytes() == package.read_bytes()


def test_all_modules_are_private(tree: Path) -> None:
    expected = [f"{name}.py" for name in PROJECT.modules]
    for name in PROJECT.packages:
        expected += [f"{name}/{path}" for path in files(TOP, name)]
    assert files(tree, PRIVATE) == sorted(expected)
    assert not (tree / "usr/lib/python3").exists()


def test_units_start_the_installed_commands(tree: Path) -> None:
    units = files(tree, "usr/lib/systemd/system")
    assert units == sorted(
        path.name for path in (TOP / "contrib").iterdir() if path.suffix in (".service", ".socket")
    )
    for unit in units:
        text = (tree / "usr/lib/systemd/system" / unit).read_text()
        command = unit.rpartition(".")[0]
        assert "/usr/local" not in text
        assert f"\nDocumentation=man:{command}(1)\n" in text
        if unit.endswith(".service"):
            started = re.search(r"^ExecStart=(\S+)", text, re.M)
            assert started is not None
            assert started[1] == f"/usr/bin/{command}"
            assert (tree / started[1].lstrip("/")).stat().st_mode & 0o777 == 0o755
            assert re.search(rf"^EnvironmentFile=-?/etc/default/{command}$", text, re.M)


def test_configuration_is_kept_by_upgrades(tree: Path) -> None:
    listed = (tree / "DEBIAN/conffiles").read_text().split()
    assert listed == [f"/etc/{name}" for name in files(tree, "etc")]
    assert listed == sorted(f"/etc/default/{name}" for name in PROJECT.commands)


@pytest.mark.parametrize("command", sorted(PROJECT.commands))
def test_proposed_options_are_valid(command: str, tree: Path) -> None:
    text = (tree / "etc/default" / command).read_text()
    assert not re.search(r"^[^#]", text, re.M)  # nothing is set until the operator sets it
    (options,) = re.findall(r'^#OPTIONS="(.*)"$', text, re.M)
    parse_args(FLAGS[command], shlex.split(options))
    mode = (tree / "etc/default" / command).stat().st_mode & 0o777
    assert mode == (0o600 if "PASSWORD" in text else 0o644)


@pytest.mark.parametrize("command", sorted(PROJECT.commands))
def test_files_in_the_manual_are_in_the_package(command: str, tree: Path) -> None:
    page = gzip.decompress((tree / f"usr/share/man/man1/{command}.1.gz").read_bytes()).decode()
    _, _, text = page.replace("\\-", "-").partition("\n.SH FILES\n")
    paths = re.findall(r"^\\fB/(\S+)\\fR$", text, re.M)
    assert len(paths) == 2
    assert all((tree / path).exists() for path in paths)


def test_manual_and_completions_of_all_commands(tree: Path) -> None:
    for command in PROJECT.commands:
        assert (tree / f"usr/share/man/man1/{command}.1.gz").exists()
        assert (tree / f"usr/share/bash-completion/completions/{command}").exists()
        assert (tree / f"usr/share/zsh/vendor-completions/_{command}").exists()
        assert (tree / f"usr/share/fish/vendor_completions.d/{command}.fish").exists()


def test_links_of_documents_lead_to_files(tree: Path) -> None:
    documents = tree / "usr/share/doc/mos-tls-tunnel"
    for path in documents.rglob("*.md"):
        for inline, reference in re.findall(
            r"\]\(([^)\s]+)\)|^\[[^\]]+\]: (\S+)$", path.read_text(), re.M
        ):
            target = (inline or reference).partition("#")[0]
            if target and ":" not in target:
                assert (path.parent / target).exists(), f"{path.name}: {target}"
    assert len(list(documents.glob("examples/*"))) >= 2
    assert (documents / "contrib" / "prometheus" / "alerts.yml").exists()
    assert list(documents.glob("contrib/grafana/*.json"))


def test_commands_run_with_the_systems_python(tree: Path, tmp_path: Path) -> None:
    python = "/usr/bin/python3"
    new_enough = [python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
    if not os.path.exists(python) or subprocess.run(new_enough, check=False).returncode:
        pytest.skip(f"{python} is older than 3.11 or missing")
    for command in PROJECT.commands:
        text = (tree / "usr/bin" / command).read_text()
        assert text.startswith(f"#!{python} -I\n")
        script = tmp_path / command
        script.write_text(text.replace(f"/{PRIVATE}", str(tree / PRIVATE)))
        done = subprocess.run(
            [python, "-IB", script, "-version"], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{command} {__version__}\n", "")


@pytest.mark.deadline(60)
def test_lintian_has_no_objection(package: Path) -> None:
    """Neither errors nor warnings."""
    lintian = require_program("lintian")
    done = subprocess.run(
        [lintian, "--fail-on=error,warning", "--allow-root", package],
        capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "")


def test_unit_without_the_usual_form_is_refused() -> None:
    with pytest.raises(ProjectError, match=r"contrib/x\.service: ExecStart= must start in"):
        deb.installed_unit("x.service", "# x\n\n[Service]\nExecStart=/bin/x\n")
    with pytest.raises(ProjectError, match=r"contrib/x\.socket: the first paragraph"):
        deb.installed_unit("x.socket", "[Socket]\nListenStream=1\n\n[Install]\n")
