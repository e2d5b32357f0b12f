"""Builds the Debian package: `python -m tools.deb [DIRECTORY]`, `make deb`.

It needs only dpkg-deb, which is part of Debian and Ubuntu. The build is reproducible; see
`source_date`.

The modules are private, in /usr/share/mos-tls-tunnel, as Debian's Python policy recommends for
programs. Public modules with names like `plugin` would conflict with other packages.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import shutil
import sys
import tempfile
from email.utils import formatdate
from pathlib import Path

from mtt.version import __version__
from tools.project import (
    TOP,
    Project,
    ProjectError,
    files_below,
    midnight,
    read_changes,
    read_project,
    run,
    run_tool,
    source_date,
)

DEBIAN = TOP / "contrib" / "debian"
# Where Debian's shells look for completions of packages.
COMPLETIONS = {
    "bash": "usr/share/bash-completion/completions",
    "zsh": "usr/share/zsh/vendor-completions",
    "fish": "usr/share/fish/vendor_completions.d",
}
# Passwords may be in these files of /etc/default.
SECRET = ("anyproxy-client", "anyproxy-gateway")

_SCRIPT = """\
#!/usr/bin/python3 -I
import sys

sys.path.insert(0, "/usr/share/{package}")
from {module} import {function}

sys.exit({function}())
"""


class Tree:
    """The files of a package below a directory, all with the same time."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, path: str, data: bytes | str, mode: int = 0o644) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data.encode() if isinstance(data, str) else data)
        target.chmod(mode)

    def copy(self, source: Path, path: str) -> None:
        self.write(path, source.read_bytes())

    def compress(self, path: str, data: bytes | str) -> None:
        data = data.encode() if isinstance(data, str) else data
        self.write(f"{path}.gz", gzip.compress(data, 9, mtime=0))

    def files(self) -> list[Path]:
        return [path for path in sorted(self.root.rglob("*")) if path.is_file()]

    def size(self) -> int:
        """In KiB, as Installed-Size counts: whole ones per file, one per directory."""
        return sum(
            -(-path.stat().st_size // 1024) if path.is_file() else 1
            for path in self.root.rglob("*")
        )

    def finish(self, seconds: int) -> None:
        """Set the time of all files, and the mode of directories."""
        for path in [*self.root.rglob("*"), self.root]:
            if path.is_dir():
                path.chmod(0o755)
            os.utime(path, (seconds, seconds))


def add_programs(tree: Tree, project: Project, top: Path) -> None:
    """The modules and the commands."""
    private = f"usr/share/{project.name}"
    for package in project.packages:
        for path in files_below(top / package):
            tree.copy(path, f"{private}/{path.relative_to(top)}")
    for name in project.modules:
        tree.copy(top / f"{name}.py", f"{private}/{name}.py")
    for name, (module, function) in project.commands.items():
        script = _SCRIPT.format(package=project.name, module=module, function=function)
        tree.write(f"usr/bin/{name}", script, 0o755)


def add_units(tree: Tree, contrib: Path) -> list[str]:
    """The systemd units with their files in /etc/default. Returns the units' names."""
    units = sorted(path for path in contrib.iterdir() if path.suffix in (".service", ".socket"))
    for path in units:
        text = installed_unit(path.name, path.read_text())
        tree.write(f"usr/lib/systemd/system/{path.name}", text)
    for path in sorted((contrib / "default").iterdir()):
        mode = 0o600 if path.name in SECRET else 0o644
        tree.write(f"etc/default/{path.name}", path.read_text(), mode)
    return [path.name for path in units]


def installed_unit(name: str, text: str) -> str:
    """The unit as the package has it; its first comment says how to install the unit by hand."""
    command, _, kind = name.rpartition(".")
    head, _, body = text.partition("\n\n")
    if not all(line.startswith("#") for line in head.splitlines()):
        raise ProjectError(f"contrib/{name}: the first paragraph must be a comment")
    title = head.splitlines()[0]
    if kind == "service":
        title += f"\n# Its options are in /etc/default/{command}; see {command}(1)."
        body, count = re.subn(r"(?m)^ExecStart=/usr/local/bin/", "ExecStart=/usr/bin/", body)
        if count != 1:
            raise ProjectError(f"contrib/{name}: ExecStart= must start in /usr/local/bin")
    body = re.sub(r"(?m)^(Description=.*)$", rf"\1\nDocumentation=man:{command}(1)", body, count=1)
    return f"{title}\n# To change this unit: systemctl edit {name}\n\n{body}"


def add_documents(tree: Tree, project: Project, top: Path) -> None:
    """Documents, examples, the changes and the license."""
    documents = f"usr/share/doc/{project.name}"
    for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md"):
        text = (top / name).read_text()
        tree.write(f"{documents}/{name}", text.replace("(LICENSE)", "(copyright)").replace(
            ": LICENSE\n", ": copyright\n"))  # fmt: skip
    for directory in ("docs", "examples", "contrib/prometheus", "contrib/grafana"):
        for path in files_below(top / directory):
            tree.copy(path, f"{documents}/{path.relative_to(top)}")
    tree.write(f"{documents}/copyright", machine_readable_copyright(project, top))
    tree.compress(f"{documents}/changelog", debian_changelog(project, top))
    overrides = "# Only root may read passwords.\n" + "".join(
        f"{project.name}: non-standard-file-perm 0600 != 0644 [etc/default/{name}]\n"
        for name in SECRET
    )
    tree.write(f"usr/share/lintian/overrides/{project.name}", overrides)


def machine_readable_copyright(project: Project, top: Path) -> str:
    title, owners, *paragraphs = (top / "LICENSE").read_text().strip().split("\n\n")
    owners = owners.removeprefix("Copyright (c) ")
    lines = "\n\n".join(paragraphs).splitlines()
    body = "\n".join(f" {line}" if line else " ." for line in lines)
    return (
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n"
        f"Upstream-Name: {project.name}\nSource: {project.url}\n\n"
        f"Files: *\nCopyright: {owners}\n"
        f"License: {title.removesuffix(' License')}\n{body}\n"
    )


def debian_changelog(project: Project, top: Path) -> str:
    """The releases without their entries, which are in CHANGELOG.md in the same directory."""
    return "\n".join(
        f"{project.name} ({section.version}) unstable; urgency=medium\n\n"
        f"  * Release {section.version}; CHANGELOG.md has the changes.\n\n"
        f" -- {project.maintainer}  {formatdate(midnight(section.date))}\n"
        for section in read_changes(top)
        if section.date is not None
    )


def add_reference(tree: Tree) -> None:
    """The generated manual pages and completions."""
    with tempfile.TemporaryDirectory() as directory:
        for tool in ("manual", "completions"):
            run([sys.executable, "-m", f"tools.{tool}", directory], cwd=TOP)
        made = Path(directory)
        for page in sorted(made.glob("man[1-9]/*")):
            tree.compress(f"usr/share/man/{page.parent.name}/{page.name}", page.read_bytes())
        for shell, place in COMPLETIONS.items():
            for path in sorted(made.glob(f"{shell}/*")):
                tree.copy(path, f"{place}/{path.name}")


def add_control(tree: Tree, project: Project, units: list[str]) -> None:
    """The control files of dpkg: fields, scripts, configuration files, checksums."""
    values = {
        "NAME": project.name,
        "VERSION": __version__,
        "MAINTAINER": project.maintainer,
        "URL": project.url,
        "SIZE": str(tree.size()),
        "UNITS": " ".join(units),
        "SERVICES": " ".join(name for name in units if name.endswith(".service")),
        "COMMANDS": " ".join(project.commands),
    }

    def filled(name: str) -> str:
        return re.sub(r"@([A-Z]+)@", lambda found: values[found[1]], (DEBIAN / name).read_text())

    tree.write(
        f"usr/share/python3/runtime.d/{project.name}.rtupdate", filled("rtupdate"), 0o755
    )
    files = [(path.relative_to(tree.root).as_posix(), path) for path in tree.files()]
    sums = "".join(f"{hashlib.md5(path.read_bytes()).hexdigest()}  {name}\n"
                   for name, path in files if not name.startswith("etc/"))  # fmt: skip
    tree.write("DEBIAN/md5sums", sums)
    tree.write("DEBIAN/conffiles", "".join(f"/{name}\n" for name, _ in files
                                           if name.startswith("etc/")))  # fmt: skip
    tree.write("DEBIAN/control", filled("control"))
    for name in ("postinst", "prerm", "postrm"):
        tree.write(f"DEBIAN/{name}", filled(name), 0o755)


def build(directory: Path) -> list[Path]:
    """Build the package in `directory`; returns its path. Raises ProjectError."""
    if shutil.which("dpkg-deb") is None:
        raise ProjectError("dpkg-deb is not installed; build the package on Debian or Ubuntu")
    project, seconds = read_project(), source_date()
    directory.mkdir(parents=True, exist_ok=True)
    package = directory / f"{project.name}_{__version__}_all.deb"
    with tempfile.TemporaryDirectory() as temporary:
        tree = Tree(Path(temporary) / "root")
        add_programs(tree, project, TOP)
        units = add_units(tree, TOP / "contrib")
        add_documents(tree, project, TOP)
        add_reference(tree)
        add_control(tree, project, units)
        tree.finish(seconds)
        # The result of xz depends on the number of threads.
        environment = {"SOURCE_DATE_EPOCH": str(seconds), "DPKG_DEB_THREADS_MAX": "1"}
        run(
            ["dpkg-deb", "--root-owner-group", "-Zxz", "--build", str(tree.root), str(package)],
            env=os.environ | environment,
        )
    return [package]


if __name__ == "__main__":
    sys.exit(run_tool("deb", build))
