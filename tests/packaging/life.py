"""The life cycle of a package in a system: use, upgrade, removal, purge."""

from __future__ import annotations

import re
from pathlib import Path

from mtt.version import __version__
from tests.packaging.roots import Root
from tests.support.processes import eventually
from tools.project import read_project

PAGE = "This came through the tunnel."
MODULES = "/usr/share/mos-tls-tunnel"
PACKAGES = "/srv/mtt-packages"  # not in /tmp: this machine's may have files of these names
OPTIONS = 'OPTIONS="-b 127.0.0.1:8443 -d 127.0.0.1:8080 -cert-dir /var/lib/mtt-server"\n'
# In the paths of all our files.
OWN = re.compile("mtt|mos-tls-tunnel|anytls|anyproxy")
_FETCH = (
    "import sys, urllib.request;"
    "print(urllib.request.urlopen(sys.argv[1], timeout=20).read().decode())"
)


def check_tunnel(root: Root, programs: str = "") -> None:
    """Server and client, one command each, carry a page. `programs`: their directory, with a /."""
    root.run(f"mkdir -p /srv/page && echo '{PAGE}' >/srv/page/index.html")
    root.start("python3 -m http.server --directory /srv/page --bind 127.0.0.1 8080")
    server = root.start(
        f"{programs}mtt-server -b 127.0.0.1:8443 -d 127.0.0.1:8080 -cert-dir /var/lib/mtt-server"
    )
    pin = server.expect(r"pin (sha256/\S+)")[1]
    client = root.start(f"{programs}mtt-client -b 127.0.0.1:1080 -s 127.0.0.1:8443 -pin {pin}")
    client.expect("listening on")
    assert fetch(root) == PAGE
    for process in (client, server):
        process.kill()


def fetch(root: Root) -> str:
    """The page, through the client, when its destination listens."""
    listens = "import socket; socket.create_connection(('127.0.0.1', 8080)).close()"
    eventually(lambda: root.attempt(f'python3 -c "{listens}"')[0] == 0, "the destination listens")
    return root.run(f'python3 -c "{_FETCH}" http://127.0.0.1:1080/').strip()


def check_life(
    root: Root, package: Path, newer: Path, install: str, *, dependencies: bool = False,
    check: str = "true",
) -> None:  # fmt: skip
    """Install with the command `install`, where {} is the package, use, upgrade, remove, purge.

    `dependencies`: other packages are installed as well, and may leave files. `check`: a command
    that must work with the package, and print nothing.
    """
    before = set(root.changed())
    root.run(install.format(root.put(package, PACKAGES)))
    check_installed(root)
    assert root.run(check) == ""
    check_tunnel(root)
    root.run(f"cat >/etc/default/mtt-server <<'EOF'\n{OPTIONS}EOF")
    root.run(install.format(root.put(newer, PACKAGES)))
    assert root.run("mtt-server -version") == "mtt-server 9.0\n"
    assert root.run("cat /etc/default/mtt-server") == OPTIONS
    assert root.attempt(f"ls {MODULES}/anytls")[0] == 2  # no compiled module stays
    root.run("dpkg --remove mos-tls-tunnel")
    assert root.attempt(f"ls {MODULES}")[0] == 2
    assert root.run("cat /etc/default/mtt-server") == OPTIONS
    assert root.run("ls /var/lib/mtt-server")
    root.run("dpkg --purge mos-tls-tunnel")
    root.run(f"rm -r /srv/page {PACKAGES}")
    left = sorted(set(root.changed()) - before)
    if dependencies:
        left = [name for name in left if OWN.search(name)]
    assert not left, left


def check_installed(root: Root) -> None:
    """Commands work, modules are compiled, and no service is enabled or runs."""
    for command in read_project().commands:
        assert root.run(f"/usr/bin/{command} -version") == f"{command} {__version__}\n"
    sources = int(root.run(f"find {MODULES} -name '*.py' | wc -l"))
    compiled = int(root.run(f"find {MODULES} -name '*.pyc' | wc -l"))
    assert sources == compiled > 100
    assert root.run("ls /usr/lib/systemd/system").count("mtt-server.service") == 1
    assert not [name for name in root.changed() if name.startswith("etc/systemd/")]
