"""WireGuard through the tunnel: wireguard-go with tunnel devices in network namespaces.

Where the system permits no such devices (in most containers), its messages are imitated by their
sizes: that tells whether the tunnel carries them, not whether WireGuard works.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.real.datagrams import application, echo, udp_server
from tests.real.tunnels import start_tunnel
from tests.support.certs import Certs
from tests.support.processes import ROOT, Processes, clean_environment
from tests.support.programs import require_program

# Initiation, response, keepalive, and data of a device whose MTU is 1420.
SIZES = (148, 92, 32, 1452)
AMOUNT = 1_000_000

# Two devices, each in a namespace of its own; their UDP sockets stay in that of the tunnel. The
# endpoint of the one that connects is mtt-client, as in docs/wireguard.md.
SCRIPT = r"""
set -e
python=$1 cert=$2 key=$3 amount=$4
mount -t tmpfs tmpfs /run
mkdir /run/wireguard
ip link set lo up

when() {  # run a command as soon as it succeeds
    for _ in $(seq 500); do "$@" 2>/dev/null && return; sleep 0.02; done
    "$@"
}
is_apart() { [ "$(readlink /proc/$1/ns/net)" != "$(readlink /proc/self/ns/net)" ]; }
in_space() { local name=$1; shift; nsenter --target $(cat /run/$name.pid) --net "$@"; }

$python mtt_server.py -b 127.0.0.1:443 -d 127.0.0.1:51820 -udp -cert $cert -key $key &
$python mtt_client.py -b 127.0.0.1:51821 -s 127.0.0.1:443 -udp -sv &
for name in there here; do
    LOG_LEVEL=error wireguard-go -f $name >/dev/null 2>&1 &
    wg genkey >/run/$name.key
    wg pubkey </run/$name.key >/run/$name.pub
    unshare --net sleep 60 &
    echo $! >/run/$name.pid
done
when wg set there private-key /run/there.key listen-port 51820 \
    peer $(cat /run/here.pub) allowed-ips 10.9.0.2/32
when wg set here private-key /run/here.key \
    peer $(cat /run/there.pub) allowed-ips 10.9.0.1/32 endpoint 127.0.0.1:51821
address=1
for name in there here; do
    when is_apart $(cat /run/$name.pid)
    ip link set $name netns $(cat /run/$name.pid)
    in_space $name ip addr add 10.9.0.$address/24 dev $name
    in_space $name ip link set $name up mtu 1420
    address=2
done
in_space there $python -c "$SERVE" $amount &
in_space here $python -c "$SEND" $amount
"""
# Over the devices: a connection that carries data to the one side, and an answer to the other.
SERVE = """
import socket, sys
with socket.create_server(("10.9.0.1", 7)) as listening:
    peer, _ = listening.accept()
    left = int(sys.argv[1])
    while left:
        left -= len(peer.recv(min(left, 65536)))
    peer.sendall(b"all")
"""
SEND = """
import socket, sys, time
for _ in range(200):
    try:
        peer = socket.create_connection(("10.9.0.1", 7), 20)
        break
    except OSError:
        time.sleep(0.05)
peer.sendall(bytes(int(sys.argv[1])))
print(peer.recv(10).decode())
"""
UNSHARE = ("unshare", "--map-root-user", "--net", "--mount", "--pid", "--fork", "--kill-child",
           "--mount-proc")  # fmt: skip


def permits_devices() -> bool:
    """Whether a program can have tunnel devices in a network namespace of its own."""
    probe = (
        "import fcntl, os, struct; "
        "fcntl.ioctl(os.open('/dev/net/tun', os.O_RDWR), 0x400454CA, struct.pack('16sH', b't', 1))"
    )
    try:
        done = subprocess.run(
            [*UNSHARE, sys.executable, "-c", probe], capture_output=True, timeout=20, check=False
        )
    except OSError:
        return False
    return done.returncode == 0


def test_wireguard(certs: Certs) -> None:
    for name in ("wg", "wireguard-go", "ip", "nsenter"):
        require_program(name)
    if not permits_devices():
        pytest.skip("this system permits no tunnel devices; only their datagrams are imitated")
    done = subprocess.run(
        [*UNSHARE, "bash", "-c", SCRIPT, "-", sys.executable, certs.cert, certs.key, str(AMOUNT)],
        cwd=ROOT, capture_output=True, text=True, timeout=25, check=False,
        env=clean_environment(SERVE=SERVE, SEND=SEND),
    )  # fmt: skip
    assert done.stdout.endswith("all\n"), done.stdout + done.stderr


def test_sizes_of_wireguard(processes: Processes, certs: Certs) -> None:
    """A stand-in: what the datagrams look like, without WireGuard."""
    with udp_server(echo) as destination:
        port = start_tunnel(processes, certs, f"127.0.0.1:{destination}", "-udp")
        with application(port) as here:
            for number, size in enumerate(SIZES * 25):
                here.send(number.to_bytes(4, "big") + bytes(size - 4))
                answer = here.recv(2000)
                assert (int.from_bytes(answer[:4], "big"), len(answer)) == (number, size)
