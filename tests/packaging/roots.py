"""Systems to install packages in: a Debian below a directory, seen through an overlay file system.

What is done in a `Root` stays in the overlay. It has its own mounts, its own processes and, unless
it needs the network, only a loopback interface. All processes in it end with the test.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import Process, Processes, eventually
from tests.support.programs import missing, require_program

# Runs in new namespaces: mounts the system, and keeps it until it is killed. It prints
# `mounted` after chroot: a command that enters its root earlier would run in that of this machine.
_HOLD = """
mount --make-rprivate / &&
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$2/root" &&
mount -t proc proc "$2/root/proc" &&
mount --rbind /dev "$2/root/dev" &&
mount -t tmpfs tmpfs "$2/root/run" &&
mkdir -p "$2/root/run/lock" &&
exec chroot "$2/root" sh -c 'echo mounted && exec sleep infinity'
"""
# The same with systemd, which wants a /dev and a control group of its own.
_BOOT = """
mount --make-rprivate / && root=$2/root &&
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$root" &&
mount -t proc proc "$root/proc" &&
mount -t sysfs sysfs "$root/sys" &&
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup" &&
mount -t tmpfs tmpfs "$root/run" &&
mount -t tmpfs -o mode=755 tmpfs "$root/dev" &&
for name in null zero full random urandom tty; do
    touch "$root/dev/$name" && mount --bind "/dev/$name" "$root/dev/$name" || exit
done &&
mkdir "$root/dev/pts" "$root/dev/shm" &&
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts" &&
ln -s pts/ptmx "$root/dev/ptmx" && ln -s /proc/self/fd "$root/dev/fd" &&
exec env -i container=test PATH="$PATH" chroot "$root" sh -c '
    echo mounted && exec /lib/systemd/systemd --show-status=no'
"""
_CGROUPS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
_LOOPBACK_UP = (
    "import fcntl, socket, struct\n"
    "SIOCSIFFLAGS, IFF_UP = 0x8914, 1\n"
    "fcntl.ioctl(socket.socket(), SIOCSIFFLAGS, struct.pack('16sh14x', b'lo', IFF_UP))"
)
# All that commands in the system get of an environment.
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
}
# What installing any package changes.
_SYSTEM = ("var/lib/dpkg/", "var/lib/apt/", "var/cache/", "var/log/", "etc/ld.so.cache")

asked = pytest.mark.skipif(
    os.environ.get("MTT_PACKAGING") != "1", reason="takes minutes; run make test-packages"
)


class Root:
    """A system whose files are those of `lower`, changed in `upper`.

    With `cgroup`, an empty control group, systemd runs in it, on top of `below`'s changes.
    """

    def __init__(
        self, lower: Path, directory: Path, processes: Processes, *, network: bool,
        below: Root | None = None, cgroup: Path | None = None,
    ) -> None:  # fmt: skip
        require_overlay()
        self.lower = lower
        self.upper = directory / "upper"
        self.path = directory / "root"
        for name in ("upper", "work", "root"):
            (directory / name).mkdir()
        self._processes = processes
        lowest = f"{below.upper}:{lower}" if below else lower
        apart = ["--mount", "--pid", *([] if network else ["--net"])]
        script, first = _HOLD, ""
        if cgroup is not None:
            apart += ["--cgroup", "--uts", "--ipc"]
            script, first = _BOOT, f"echo $$ >{cgroup}/cgroup.procs && "
        self.holder = holder = processes.start(
            "sh", "-c", f'{first}exec "$@"', "sh", "unshare", *apart, "--fork", "--kill-child",
            "sh", "-c", script, "sh", lowest, directory,
        )  # fmt: skip
        eventually(lambda: "mounted" in holder.output or not holder.running, "it is mounted")
        if not holder.running:
            pytest.skip(f"this machine does not permit overlays: {holder.output.strip()}")
        children = Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split()
        self._enter = ["nsenter", "--target", children[0], "--mount", "--pid", "--net"]
        if cgroup is not None:
            self._enter += ["--cgroup", "--uts", "--ipc"]
        if not network:
            subprocess.run([*self._enter, "python3", "-c", _LOOPBACK_UP], check=True)

    def run(self, command: str, *, seconds: float = 120, **variables: str) -> str:
        """Run a shell command; returns what it printed. Fails the test if the command fails."""
        code, output = self.attempt(command, seconds=seconds, **variables)
        if code:
            pytest.fail(f"exit code {code} of: {command}\n{output}", pytrace=False)
        return output

    def attempt(
        self, command: str, *, seconds: float = 120, **variables: str
    ) -> tuple[int, str]:
        """Run a shell command; returns its exit code and what it printed."""
        done = subprocess.run(
            self._argv(command, variables), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, timeout=seconds, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout.decode(errors="replace")

    def start(self, command: str) -> Process:
        """Start a shell command that goes on."""
        return self._processes.start(*self._argv(f"exec {command}", {}))

    def _argv(self, command: str, variables: dict[str, str]) -> list[str]:
        environment = [f"{name}={value}" for name, value in (_ENVIRONMENT | variables).items()]
        return [*self._enter, "--root", "--wd", "env", "-i", *environment, "sh", "-c", command]

    def put(self, source: Path, target: str) -> str:
        """Copy a file into the system's directory `target`; returns the path there, quoted."""
        self.run(f"mkdir -p {shlex.quote(target)}")
        path = f"{target}/{source.name}"
        done = subprocess.run(
            self._argv(f"cat >{shlex.quote(path)}", {}), input=source.read_bytes(), check=True
        )
        assert done.returncode == 0
        return shlex.quote(path)

    def unpack(self, archive: bytes, target: str) -> None:
        """Unpack a tar archive in the system's directory `target`."""
        command = f"mkdir -p {target} && tar -x -C {target}"
        subprocess.run(self._argv(command, {}), input=archive, check=True)

    def changed(self) -> list[str]:
        """New, changed and removed files and new directories, except for those of all packages."""
        found = []
        for path in sorted(self.upper.rglob("*")):
            name = path.relative_to(self.upper).as_posix()
            if path.is_dir() and (self.lower / name).is_dir():
                continue  # it leads to a change
            if not name.startswith(_SYSTEM):
                found.append(name)
        return found


@contextlib.contextmanager
def control_group(name: str) -> Iterator[Path]:
    """A new control group; the processes in it must have ended when the context does."""
    parents = [path for path in _CGROUPS if (path / "cgroup.procs").exists()]
    parents = [path for path in parents if (path / "cgroup.controllers").exists()]
    if not parents:
        missing("this machine has no control groups of version 2")
    path = parents[0] / name
    path.mkdir()
    try:
        yield path
    finally:
        eventually(lambda: _is_removed(path), "the control group is empty")


def _is_removed(path: Path) -> bool:
    """Remove a control group with those in it; False while they have processes."""
    try:
        for directory, _, _ in os.walk(path, topdown=False):
            os.rmdir(directory)
    except OSError:
        return False
    return True


def require_overlay() -> None:
    """Skips the test where overlays, namespaces and chroot are not permitted."""
    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("only root may mount and chroot")
    for program in ("unshare", "nsenter", "chroot", "mount"):
        require_program(program)
