"""-udp: dig through the tunnel in every mode, workers, and a plugin as shadowsocks starts it."""

from __future__ import annotations

import re

import pytest

from mtt.modes import MODES
from tests.real.datagrams import application, echo, names, udp_server
from tests.real.tunnels import start_client, start_server, start_tunnel
from tests.support.certs import Certs
from tests.support.processes import Processes, command, listening, run
from tests.support.programs import require_program
from tests.support.workers import needs_proc


@pytest.mark.parametrize("mode", MODES)
def test_dig(mode: str, processes: Processes, certs: Certs) -> None:
    """As in docs/udp.md, with a port of one's own."""
    dig = require_program("dig")
    with udp_server(names("192.0.2.7", "2001:db8::7")) as dns:
        options = ("-udp", *MODES[mode].command_line("secret"))
        port = start_tunnel(processes, certs, f"127.0.0.1:{dns}", *options)
        for kind, expected in (("A", b"192.0.2.7\n"), ("AAAA", b"2001:db8::7\n")):
            asked = ("@127.0.0.1", "-p", str(port), "+short", "+noedns", "nas.example", kind)
            assert run(dig, *asked) == expected


@needs_proc
def test_workers_share_the_port(processes: Processes, certs: Certs) -> None:
    with udp_server(echo) as destination:
        options = ("-udp", "-workers", "2", "-verbose")
        _, server = start_server(processes, certs, f"127.0.0.1:{destination}", *options)
        client, port = start_client(processes, certs, server, *options)
        seen: set[str] = set()
        for _ in range(100):  # each address is one worker's, and that of half of them
            with application(port) as sock:
                for number in range(5):
                    sock.send(b"%d" % number)
                assert [sock.recv(10) for _ in range(5)] == [b"%d" % each for each in range(5)]
            seen = set(re.findall(r"mtt-client\[(\d)\]: \S+: open", client.output))
            if seen == {"1", "2"}:
                break
        assert seen == {"1", "2"}
        assert client.output.count("listening on") == 1


def test_plugin_carries_udp_on_the_port_of_shadowsocks(processes: Processes, certs: Certs) -> None:
    """SIP003u: the same hosts and ports; which protocols are used is not in the environment."""

    def start(name: str, local: int, remote: int, options: str) -> int:
        env = {
            "SS_LOCAL_HOST": "127.0.0.1", "SS_LOCAL_PORT": str(local),
            "SS_REMOTE_HOST": "127.0.0.1", "SS_REMOTE_PORT": str(remote),
            "SS_PLUGIN_OPTIONS": options,
        }  # fmt: skip
        return listening(processes.start(*command(name), env=env))[1]

    with udp_server(echo) as shadowsocks:
        options = f"wss;udp;cert={certs.cert};key={certs.key}"
        remote = start("mtt-server", shadowsocks, 0, options)
        local = start("mtt-client", 0, remote, f"wss;udp;ca={certs.ca};n={certs.name}")
        with application(local) as sock:
            sock.send(b"an encrypted datagram")
            assert sock.recv(100) == b"an encrypted datagram"
