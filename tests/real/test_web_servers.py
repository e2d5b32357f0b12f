"""Behind HAProxy and Caddy, configured as docs/web-servers.md says. nginx has tests of its own."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.real.destinations import PAGE, Site
from tests.support.certs import Certs
from tests.support.documents import adapted, blocks, changed, commands
from tests.support.processes import Processes, accepts, eventually, free_port, listening, run
from tests.support.programs import require_program

PAGE_NAME = "web-servers.md"
SERVER, *_ = commands(PAGE_NAME, "mtt-server")
CLIENT, CDN_CLIENT = commands(PAGE_NAME, "mtt-client")


def start_haproxy(
    processes: Processes, certs: Certs, directory: Path, port: int, server: int, site: Site
) -> None:
    haproxy = require_program("haproxy")
    both = directory / "both.pem"
    both.write_bytes(Path(certs.cert).read_bytes() + Path(certs.key).read_bytes())
    (text,) = blocks(PAGE_NAME, "haproxy")
    places = {
        ":443": f"127.0.0.1:{port}", "/etc/haproxy/example.com.pem": str(both),
        "127.0.0.1:8443": f"127.0.0.1:{server}", "127.0.0.1:8081": site.address,
    }  # fmt: skip
    path = directory / "haproxy.cfg"
    path.write_text(changed(text, places))
    assert run(haproxy, "-c", "-q", "-f", path) == b""
    processes.start(haproxy, "-db", "-f", path)


def start_caddy(
    processes: Processes, certs: Certs, directory: Path, port: int, server: int, site: Site
) -> None:
    caddy = require_program("caddy")
    root = directory / "html"
    root.mkdir()
    (root / "index.html").write_bytes(PAGE)
    (text,) = blocks(PAGE_NAME, "caddyfile")
    places = {
        "example.com {": f"https://{certs.name}:{port} {{\n    bind 127.0.0.1\n"
        f"    tls {certs.cert} {certs.key}",
        "127.0.0.1:8443": f"127.0.0.1:{server}", "/var/www/html": str(root),
    }  # fmt: skip
    path = directory / "Caddyfile"
    path.write_text("{\n    admin off\n    auto_https off\n}\n" + changed(text, places))
    environment = ("env", f"HOME={directory}", f"XDG_CONFIG_HOME={directory}")
    processes.start(*environment, caddy, "run", "--adapter", "caddyfile", "--config", path)


@pytest.mark.parametrize("start", [start_haproxy, start_caddy], ids=["haproxy", "caddy"])
@pytest.mark.parametrize("client", [CLIENT, CDN_CLIENT], ids=["plain", "as with a CDN"])
def test_one_path_is_the_tunnel_and_the_rest_a_site(
    start: Callable[..., None],
    client: list[str],
    processes: Processes,
    certs: Certs,
    site: Site,
    tmp_path: Path,
) -> None:
    port = free_port()
    given = {"-b": "127.0.0.1:0", "-d": site.address}
    server = processes.command("mtt-server", *adapted(SERVER, given), "-verbose")
    start(processes, certs, tmp_path, port, listening(server)[1], site)
    eventually(lambda: accepts(port), "the web server listens")

    places = {"-b": "127.0.0.1:0", "-s": f"127.0.0.1:{port}"}
    names = {"-n": certs.name} if "-n" in client else {}
    name = () if names else ("-n", certs.name)
    program = processes.command(
        "mtt-client", *adapted(client, places | names), *name, "-ca", certs.ca
    )
    curl = (require_program("curl"), "-sSf", "--cacert", certs.ca)
    assert run(*curl, f"http://127.0.0.1:{listening(program)[1]}/") == PAGE
    server.expect(": open")
    # A visitor of the site.
    url = f"https://{certs.name}:{port}/"
    assert run(*curl, "--resolve", f"{certs.name}:{port}:127.0.0.1", url) == PAGE
    assert server.output.count(": open") == 1
    assert not re.search("WARNING|ERROR", server.output + program.output)
