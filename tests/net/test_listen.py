"""Listening on TCP: hosts, families, errors, options, shared sockets."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from typing import Any

import pytest

from mtt.address import Endpoint
from mtt.errors import NetworkError, StartError
from mtt.layers.base import StreamProtocol
from mtt.net import listen as listen_module
from mtt.net.listen import FAST_OPEN_QUEUE, Listener, bind, bind_now, bind_udp
from mtt.net.resolve import Address, Resolver
from mtt.net.sockets import KEEPALIVE_IDLE, KEEPALIVE_INTERVAL
from tests.net.listening import Accepting, answers
from tests.support.loopback import linux_only, needs_ipv6


class Names(Resolver):
    """A resolver for made-up names."""

    def __init__(self, **names: list[Address]) -> None:
        super().__init__()
        self.names = names

    async def resolve(self, host: str, port: int) -> list[Address]:
        if host in self.names:
            return [(family, (rest[0], port, *rest[2:])) for family, rest in self.names[host]]
        return await super().resolve(host, port)


async def open_tcp(
    *hosts: str, port: int = 0, resolver: Resolver | None = None, fast_open: bool = False
) -> Listener:
    listener = await bind(
        Endpoint(hosts, port), "", resolver=resolver or Resolver(), fast_open=fast_open
    )
    listener.serve(Accepting)
    return listener


def port_of(listener: Listener) -> int:
    ports = {int(address.rpartition(":")[2]) for address in listener.addresses}
    assert len(ports) == 1
    return ports.pop()


def listening_sockets(listener: Listener) -> list[socket.socket]:
    assert listener._acceptor is not None
    return listener._acceptor.sockets


async def test_port_0_is_reported_and_close_stops_listening():
    listener = await open_tcp("127.0.0.1")
    port = port_of(listener)
    assert port > 0
    assert listener.addresses == [f"127.0.0.1:{port}"]
    assert await answers("127.0.0.1", port)
    listener.close()
    assert not await answers("127.0.0.1", port)
    listener.close()  # a second time does no harm


async def test_port_can_be_taken_again_at_once():
    """Connections that the server closed stay in TIME_WAIT; SO_REUSEADDR overlooks them."""
    listener = await open_tcp("127.0.0.1")
    port = port_of(listener)
    assert await answers("127.0.0.1", port)
    listener.close()
    await asyncio.sleep(0)  # uvloop closes in the next turn
    again = await open_tcp("127.0.0.1", port=port)
    assert await answers("127.0.0.1", port)
    again.close()


async def test_several_hosts_share_one_port():
    listener = await open_tcp("127.0.0.1", "127.0.0.2", "127.0.0.3")
    port = port_of(listener)
    assert len(listener.addresses) == 3
    for host in ("127.0.0.1", "127.0.0.2", "127.0.0.3"):
        assert await answers(host, port)
    listener.close()


async def test_port_0_is_drawn_again_when_taken_on_another_host(monkeypatch):
    real = listen_module._bind_one
    calls: list[Any] = []

    def bind(kind: int, family: int, address: Any, *rest: Any) -> socket.socket:
        calls.append(address)
        if len(calls) == 2:
            raise OSError(errno.EADDRINUSE, "taken")
        return real(kind, family, address, *rest)

    monkeypatch.setattr(listen_module, "_bind_one", bind)
    listener = await open_tcp("127.0.0.1", "127.0.0.2")
    assert [address[0] for address in calls] == ["127.0.0.1", "127.0.0.2"] * 2
    assert calls[2][1] == 0
    assert port_of(listener) == calls[3][1]
    listener.close()


async def test_hosts_of_the_same_address_are_bound_once():
    listener = await open_tcp("127.0.0.1", "127.0.0.1")
    assert len(listener.addresses) == 1
    listener.close()


@needs_ipv6
@pytest.mark.parametrize("host", ["", "::", "0::0"])
async def test_all_interfaces_means_both_families(host):
    listener = await open_tcp(host)
    port = port_of(listener)
    assert listener.addresses == [f"[::]:{port}"]
    assert await answers("127.0.0.1", port)
    assert await answers("::1", port)
    listener.close()


@needs_ipv6
async def test_both_wildcards_side_by_side():
    for hosts in (("::", "0.0.0.0"), ("0.0.0.0", "::")):
        listener = await open_tcp(*hosts)
        port = port_of(listener)
        assert len(listener.addresses) == 2
        assert await answers("127.0.0.1", port)
        assert await answers("::1", port)
        listener.close()


@needs_ipv6
async def test_ipv6_loopback_is_written_in_brackets():
    listener = await open_tcp("::1")
    assert listener.addresses == [f"[::1]:{port_of(listener)}"]
    assert await answers("::1", port_of(listener))
    listener.close()


@pytest.mark.parametrize("hosts", [("",), ("::",), ("::", "0.0.0.0")])
async def test_kernel_without_ipv6_listens_on_ipv4(monkeypatch, hosts):
    monkeypatch.setattr(listen_module, "_has_ipv6", lambda: False)
    listener = await open_tcp(*hosts)
    port = port_of(listener)
    assert listener.addresses == [f"0.0.0.0:{port}"]
    assert await answers("127.0.0.1", port)
    listener.close()


def test_ipv6_is_asked_of_the_kernel(monkeypatch):
    def refuse(*args: object) -> socket.socket:
        raise OSError(errno.EAFNOSUPPORT, "no such family")

    monkeypatch.setattr(listen_module.socket, "socket", refuse)
    assert not listen_module._has_ipv6()


async def test_name_is_bound_where_this_machine_has_it():
    foreign: Address = (socket.AF_INET, ("203.0.113.7", 0))
    ours: Address = (socket.AF_INET, ("127.0.0.1", 0))
    resolver = Names(partly=[foreign, ours], foreign=[foreign])
    listener = await open_tcp("partly", resolver=resolver)
    assert listener.addresses == [f"127.0.0.1:{port_of(listener)}"]
    listener.close()
    with pytest.raises(StartError, match=r"203\.0\.113\.7:0: this machine does not have"):
        await open_tcp("foreign", resolver=resolver)
    with pytest.raises(StartError, match="does not have this address"):
        await open_tcp("127.0.0.1", "foreign", resolver=resolver)


async def test_localhost_is_bound():
    listener = await open_tcp("localhost")
    assert await answers("127.0.0.1", port_of(listener))
    listener.close()


async def test_unresolved_name_is_an_error():
    class Failing(Resolver):
        async def resolve(self, host: str, port: int) -> list[Address]:
            raise NetworkError(f"cannot resolve {host}: no such name")

    with pytest.raises(StartError, match=r"on a\.b:80: cannot resolve a\.b: no such"):
        await open_tcp("a.b", port=80, resolver=Failing())


async def test_port_in_use_is_an_error():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartError) as caught:
            await open_tcp("127.0.0.2", "127.0.0.1", port=port)
        assert str(caught.value) == (
            f"cannot listen on 127.0.0.1:{port}: address already in use: "
            "another program listens there; stop it or choose another port"
        )
        # Nothing stays open on the host that was free.
        socket.create_server(("127.0.0.2", port)).close()


async def test_missing_permission_is_an_error(monkeypatch):
    def refuse(*args: object) -> socket.socket:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(listen_module, "_bind_one", refuse)
    with pytest.raises(StartError, match=r"127\.0\.0\.1:80: no permission; ports below 1024"):
        await open_tcp("127.0.0.1", port=80)


@linux_only
async def test_accepted_sockets_inherit_their_options():
    accepted = asyncio.get_running_loop().create_future()

    class Server(StreamProtocol):
        def connection_made(self, transport: Any) -> None:
            accepted.set_result(transport)

    listener = await bind(Endpoint(("127.0.0.1",), 0), "", resolver=Resolver())
    listener.serve(Server)
    with socket.create_connection(("127.0.0.1", port_of(listener))):
        transport = await accepted
        sock = transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == KEEPALIVE_IDLE
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == KEEPALIVE_INTERVAL
        transport.abort()
    listener.close()


@linux_only
async def test_fast_open_is_set_on_the_listener(monkeypatch, tmp_path, caplog):
    sysctl = tmp_path / "tcp_fastopen"
    monkeypatch.setattr(listen_module, "_FAST_OPEN_SYSCTL", str(sysctl))
    for value, queue, words in [
        ("3\n", FAST_OPEN_QUEUE, ""),
        ("1\n", FAST_OPEN_QUEUE, "tcp_fastopen=3"),
        (None, 0, "without TCP fast open"),
    ]:
        caplog.clear()
        sysctl.write_text(value) if value else sysctl.unlink()
        with caplog.at_level(logging.WARNING, "mtt"):
            listener = await open_tcp("127.0.0.1", "127.0.0.2", fast_open=True)
        for sock in listening_sockets(listener):
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN) == queue
        assert len(caplog.records) == bool(words)
        assert words in caplog.text
        assert await answers("127.0.0.1", port_of(listener))
        listener.close()


# Several processes with the same sockets.


async def test_connections_wait_until_they_are_served() -> None:
    listener = await bind(Endpoint(("127.0.0.1",), 0), "", resolver=Resolver())
    (address,) = listener.addresses
    with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as client:
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        waiting = asyncio.ensure_future(loop.sock_recv(client, 1))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        listener.serve(Accepting, yields=lambda: True)
        assert await waiting == b"!"
    listener.close()
    await asyncio.sleep(0)


async def test_listener_that_never_served_is_closed() -> None:
    listener = await bind(Endpoint(("127.0.0.1",), 0), "", resolver=Resolver())
    (address,) = listener.addresses
    listener.close()
    listener.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])))


async def test_literals_are_bound_without_waiting():
    listener = bind_now(Endpoint(("127.0.0.1", "127.0.0.2"), 0))
    listener.serve(Accepting)
    assert await answers("127.0.0.2", port_of(listener))
    with pytest.raises(StartError, match="already in use"):
        bind_now(Endpoint(("127.0.0.1",), port_of(listener)))
    listener.close()


@pytest.mark.parametrize("bind_it", [bind_now, bind_udp])
def test_names_are_not_bound_without_waiting(bind_it):
    with pytest.raises(StartError, match="cannot listen on localhost: it is not an IP address"):
        bind_it(Endpoint(("localhost",), 0))


async def test_udp_is_bound_on_every_host():
    sockets = bind_udp(Endpoint(("127.0.0.1", "127.0.0.2"), 0))
    ports = {sock.getsockname()[1] for sock in sockets}
    assert len(sockets) == 2
    assert len(ports) == 1
    with pytest.raises(StartError, match="already in use"):
        bind_udp(Endpoint(("127.0.0.1",), ports.pop()))
    for sock in sockets:
        sock.close()


@needs_ipv6
async def test_udp_on_all_interfaces_means_both_families():
    (there,) = bind_udp(Endpoint(("",), 0))
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with socket.socket(family, socket.SOCK_DGRAM) as user:
            user.sendto(b"hello", (host, there.getsockname()[1]))
            assert there.recv(10) == b"hello"
    there.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1|127.0.0.2"])
async def test_udp_beside_tcp_has_the_same_addresses(host):
    listener = bind_now(Endpoint(tuple(host.split("|")), 0))
    sockets = listener.bind_udp()
    names = [f"{address}:{port}" for address, port in (sock.getsockname() for sock in sockets)]
    assert names == listener.addresses
    assert {sock.type for sock in sockets} == {socket.SOCK_DGRAM}
    assert listener.bind_udp() is sockets
    endpoint = Endpoint(("127.0.0.1",), sockets[0].getsockname()[1])
    listener.close()
    assert not sockets
    for sock in bind_udp(endpoint):
        sock.close()


async def test_udp_port_in_use_beside_tcp_is_an_error():
    listener = bind_now(Endpoint(("127.0.0.1",), 0))
    (taken,) = bind_udp(Endpoint(("127.0.0.1",), port_of(listener)))
    with pytest.raises(StartError, match=r"cannot listen on UDP 127\.0\.0\.1:\d+: .* in use"):
        listener.bind_udp()
    taken.close()
    listener.close()


@needs_ipv6
@pytest.mark.parametrize(("host", "dual"), [("", True), ("::1", False)])
async def test_udp_is_dual_stack_like_tcp(host, dual):
    listener = bind_now(Endpoint((host,), 0))
    (sock,) = listener.bind_udp()
    only = sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    assert bool(only) is not dual
    listener.close()


async def test_udp_port_can_be_shared():
    listener = bind_now(Endpoint(("127.0.0.1",), 0))
    listener.bind_udp(shared=True)
    first, listener._udp = listener._udp, []  # those of another process
    assert first[0].getsockname() == listener.bind_udp(shared=True)[0].getsockname()
    first[0].close()
    listener.close()


async def test_no_udp_beside_a_unix_socket(tmp_path):
    listener = await bind(None, str(tmp_path / "socket"), resolver=Resolver())
    assert listener.bind_udp() == []
    listener.close()
