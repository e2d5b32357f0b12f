"""The controller's endpoint: HTTP on real sockets, and who gets in."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest

from mtt.errors import StartError
from mtt.http.limits import OPERATORS
from mtt.http.server import HttpServer
from mtt.layers.reads import LARGE_READ
from mtt.wire.http1 import MAX_HEAD
from mtt.wire.httpbody import MAX_LINE, MAX_TRAILERS
from mtt_mu_server import control, turns
from mtt_mu_server.api import BODY_LIMIT
from tests.mu.panel import Panel, multi_user_server
from tests.support.certs import Certs
from tests.support.clock import Clock
from tests.support.contexts import trusting_context
from tests.support.tunnels import connect, eventually, logged

PING = b'{"opt":9}'
TOKEN = "0123456789abcdef-._~+/="


def post(body: bytes, *headers: str, host: str = "localhost", target: str = "/") -> bytes:
    lines = [f"POST {target} HTTP/1.1", f"Host: {host}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def closing(body: bytes, *headers: str, **parts: str) -> bytes:
    return post(body, "Connection: close", *headers, **parts)


def status(answer: bytes) -> int:
    return int(answer.split()[1])


async def test_answers_are_the_originals_but_for_the_content_type(certs: Certs) -> None:
    """Headers in the order in which Go's net/http writes them."""
    async with multi_user_server(certs) as (_, panel):
        for body, answer in [
            (PING, b'{"res":1}'),
            (b'{"opt":1,"args_bunch":[{"path":"/a","dst":"h:1"}]}', b'{"res":1}'),
            (PING, b'{"res":1,"current_users":1}'),
            (b'{"opt":2,"args_bunch":[{"path":"/x"}]}', b'{"res":1}'),
            (b'{"opt":2}', b'{"res":2,"err_string":"empty args"}'),
            (b'{"opt":7}', b'{"res":2,"err_string":"invalid opt"}'),
            (b'{"opt":3}', b'{"res":1}'),
            (PING, b'{"res":1}'),
        ]:
            reader, writer = await panel.connect()
            writer.write(post(body, target="/any/path?x"))
            head = await reader.readuntil(b"\r\n\r\n")
            head = re.sub(rb"Date: \w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", b"Date: now", head)
            assert head == (
                b"HTTP/1.1 200 OK\r\n"
                b"Date: now\r\n"
                b"Content-Length: %d\r\n"
                b"Content-Type: application/json\r\n\r\n" % len(answer)
            )
            assert await reader.readexactly(len(answer)) == answer
            writer.close()
            await writer.wait_closed()


async def test_requests_in_a_row_on_one_connection(certs: Certs) -> None:
    async with multi_user_server(certs) as (_, panel):
        answer = await panel.exchange(post(PING) * 3 + closing(PING))
        assert answer.count(b"HTTP/1.1 200 OK") == 4
        answer = await panel.exchange(
            b"POST / HTTP/1.0\r\nContent-Length: 9\r\nConnection: keep-alive\r\n\r\n" + PING +
            b"POST / HTTP/1.0\r\nContent-Length: 9\r\n\r\n" + PING
        )  # fmt: skip
        assert answer.count(b"HTTP/1.0 200 OK") == 2


@pytest.mark.parametrize("piece", [1, 7])
async def test_a_request_in_pieces(piece: int, certs: Certs) -> None:
    async with multi_user_server(certs) as (_, panel):
        reader, writer = await panel.connect()
        request = closing(PING)
        for at in range(0, len(request), piece):
            writer.write(request[at : at + piece])
            await asyncio.sleep(0)
        assert status(await reader.read()) == 200
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        (b"9\r\n" + PING + b"\r\n0\r\n\r\n", 200),
        (b"4\r\n" + PING[:4] + b"\r\n005;x=y\r\n" + PING[4:] + b"\r\n0\r\nTrailer: x\r\n\r\n", 200),
        (b"g\r\n", 400),
        (b"-1\r\n", 400),
        (b"\r\n", 400),
        (b"9\r\n" + PING + b"xx\r\n", 400),
        (b"9" * 2000 + b"\r\n", 400),
        (b"9" * 2 * MAX_LINE, 400),
        (b"9\n" + PING + b"\r\n0\r\n\r\n", 400),  # bare LF, RFC 9112, 2.2 and 7.1
        (b"9\r\n" + PING + b"\n0\r\n\r\n", 400),
        (b"9\r\n" + PING + b"\r\n0\n\r\n", 400),
        (b"9\r\n" + PING + b"\r\n0\r\nTrailer: x\n\r\n", 400),
        (b"9\r\n" + PING + b"\r\n0\r\n\n", 400),
        (b"9\r" + PING + b"\r\n0\r\n\r\n", 400),
        (b"%x\r\n" % BODY_LIMIT, 413),
        (b"f" * 15 + b"\r\n", 413),
        (b"0\r\n" + b"a: b\r\n" * MAX_TRAILERS, 431),
    ],
)
async def test_chunked_bodies(chunks: bytes, expected: int, certs: Certs) -> None:
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
    async with multi_user_server(certs) as (_, panel):
        answer = await panel.exchange(head + b"Connection: close\r\n\r\n" + chunks)
        assert status(answer) == expected


@pytest.mark.parametrize(("size", "expected"), [(MAX_HEAD, 200), (MAX_HEAD + 1, 431)])
async def test_size_of_a_head(size: int, expected: int, certs: Certs) -> None:
    head, end, body = closing(PING, "X: ").partition(b"\r\n\r\n")
    head += b"x" * (size - len(head + end))
    async with multi_user_server(certs) as (_, panel):
        assert status(await panel.exchange(head + end + body)) == expected


@pytest.mark.parametrize(("size", "expected"), [(BODY_LIMIT - 1, 200), (BODY_LIMIT, 413)])
async def test_size_of_a_body(size: int, expected: int, certs: Certs) -> None:
    body = PING + b" " * (size - len(PING))
    async with multi_user_server(certs) as (_, panel):
        answer = await panel.exchange(closing(body))
        assert status(answer) == expected
        if expected == 413:
            assert b'{"res":2,"err_string":"body: it must be smaller than 2097152' in answer
        half = len(body) // 2
        chunked = b"%x\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (
            half, body[:half], size - half, body[half:],
        )  # fmt: skip
        head = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
        answer = await panel.exchange(head + b"Connection: close\r\n\r\n" + chunked)
        assert status(answer) == expected


async def test_a_client_that_asks_before_it_sends(certs: Certs) -> None:
    async with multi_user_server(certs) as (_, panel):
        reader, writer = await panel.connect()
        writer.write(b"POST / HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
                     b"Connection: close\r\nContent-Length: 9\r\n\r\n")  # fmt: skip
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(PING)
        assert status(await reader.read()) == 200
        writer.close()
        await writer.wait_closed()


async def test_a_small_body_that_is_not_wanted_is_dropped(certs: Certs) -> None:
    async with multi_user_server(certs) as (_, panel):
        unwanted = post(b"body").replace(b"POST", b"PUT")
        healthy = post(b"body", target="/healthz").replace(b"POST", b"GET")
        answers = await panel.exchange(unwanted + healthy + closing(PING))
        found = re.findall(rb"HTTP/1.1 (\d+) ", answers)
        assert found == [b"405", b"200", b"200"]
        assert answers.endswith(b'{"res":1}')


async def test_an_end_in_the_middle_of_a_head_is_a_bad_request(certs: Certs) -> None:
    async with (
        multi_user_server(certs) as (_, panel),
        await connect(int(panel.address.rpartition(":")[2])) as client,
    ):
        await client.send(post(PING)[:20])
        await client.finish()
        assert status(await client.rest()) == 400


@pytest.mark.parametrize("method", ["GET", "PUT", "HEAD", "DELETE", "OPTIONS"])
async def test_a_command_is_a_post(method: str, certs: Certs) -> None:
    request = f"{method} / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    async with multi_user_server(certs) as (_, panel):
        head, _, body = (await panel.exchange(request)).partition(b"\r\n\r\n")
        assert status(head) == 405
        assert b"\r\nAllow: POST\r\n" in head
        assert body == (b"" if method == "HEAD" else b'{"res":2,"err_string":"method: a command '
                        b'is a POST"}')  # fmt: skip


async def test_errors_say_what_is_wrong_and_change_nothing(certs: Certs) -> None:
    bad = b'{"opt":1,"args_bunch":[{"path":"/a","dst":"h:1"},{"path":"/b","dst":"h"}]}'
    async with multi_user_server(certs) as (_, panel):
        answer = await panel.exchange(closing(bad))
        assert status(answer) == 400
        assert b'{"res":2,"err_string":"args_bunch[1].dst: ' in answer
        assert status(await panel.exchange(closing(b""))) == 400
        assert await panel.command(9) == {"res": 1}


@pytest.mark.parametrize(
    "garbage",
    [b"\x16\x03\x01\0\0\r\n\r\n", b"x" * 40_000, b"GET /\r\n\r\n", b"SSH-2.0-x\r\n"],
)
async def test_garbage(garbage: bytes, certs: Certs) -> None:
    async with multi_user_server(certs) as (_, panel):
        answer = await panel.exchange(garbage)
        assert status(answer) in (400, 431)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b"\r\nContent-Type: application/json\r\n" in head
        assert json.loads(body)["err_string"]
        assert await panel.command(9) == {"res": 1}


async def test_pages_and_statistics(certs: Certs) -> None:
    async with multi_user_server(certs) as (_, panel):
        users = [{"path": f"/{number}", "dst": f"h:{number + 1}"} for number in range(2500)]
        assert await panel.command(1, *users) == {"res": 1}
        listed: list[Any] = []
        while len(listed) < 2500:
            page = await panel.command(4, offset=len(listed), limit=800)
            assert page["total"] == 2500
            listed += page["users"]
        assert [{"path": user["path"], "dst": user["dst"]} for user in listed] == users
        assert len((await panel.command(4))["users"]) == 1000
        assert (await panel.command(4, offset=2500))["users"] == []
        answer = await panel.command(5, {"path": "/7"}, {"path": "/nobody"})
        assert [user["path"] for user in answer["users"]] == ["/7"]
        assert (await panel.command(5, offset=2499))["users"][0] == {
            "path": "/2499", "id": listed[-1]["id"], "bytes_up": 0, "bytes_down": 0,
            "total_conns": 0, "last_seen": 0, "open_conns": 0,
        }  # fmt: skip


async def test_health_and_metrics(certs: Certs) -> None:
    async with multi_user_server(certs) as (_, panel):
        await panel.add("/secret", 1)
        for path, text in (("/healthz", b"ok\n"), ("/metrics", b"\nmtt_mu_users 1\n")):
            request = b"%b " + path.encode() + b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
            request = request.replace(b"Host: a", b"Host: 127.0.0.1")
            answer = await panel.exchange(request % b"GET")
            assert status(answer) == 200
            assert text in answer
            assert b"secret" not in answer
            head = await panel.exchange(request % b"HEAD")
            assert head.partition(b"\r\n\r\n")[2] == b""


# Who gets in. The rules by themselves are in test_access.


async def test_pages_in_browsers_are_refused(certs: Certs) -> None:
    body = b'{"opt":1,"args_bunch":[{"path":"/a","dst":"h:1"}]}'
    with logged() as lines:
        async with multi_user_server(certs) as (_, panel):
            for origin in ("http://evil.example", "null", f"http://{panel.address}", ""):
                assert status(await panel.exchange(post(body, f"Origin: {origin}"))) == 403
            assert status(await panel.exchange(post(body, host="evil.example"))) == 403
            for path in ("/healthz", "/metrics"):
                request = f"GET {path} HTTP/1.1\r\nHost: evil.example\r\n\r\n".encode()
                assert status(await panel.exchange(request)) == 403
            assert await panel.command(9) == {"res": 1}
    assert not any("/a" in line for line in lines)


async def test_unix_socket(certs: Certs, tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    before = os.umask(0)
    try:
        async with multi_user_server(certs, c=f"unix:{path}") as (_, panel):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert await panel.command(9) == {"res": 1}
            assert os.umask(0) == 0
    finally:
        os.umask(before)
    assert not path.exists()


async def test_in_public_with_token_and_tls(certs: Certs, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    context = trusting_context(certs.ca)
    given = {"c": "0.0.0.0:0", "c-token-file": str(token), "c-cert": certs.cert,
             "c-key": certs.key}  # fmt: skip
    with logged() as lines:
        async with multi_user_server(certs, **given) as (server, _):
            port = int(server.controller_addresses[0].rpartition(":")[2])

            async def ask(request: bytes) -> int:
                reader, writer = await asyncio.open_connection(
                    "127.0.0.1", port, ssl=context, server_hostname=certs.name
                )
                writer.write(request)
                answer = await reader.read()
                writer.close()
                with contextlib.suppress(ConnectionError):
                    await writer.wait_closed()
                return status(answer)

            header = f"Authorization: Bearer {TOKEN}"
            assert await ask(closing(PING, header, host=certs.name)) == 200
            assert await ask(closing(PING, header, host="192.0.2.1")) == 200
            assert await ask(closing(PING, host=certs.name)) == 401
            assert await ask(closing(PING, header, host="evil.example")) == 403
            get = f"GET /metrics HTTP/1.1\r\nHost: {certs.name}\r\n\r\n".encode()
            assert await ask(get) == 401
            # In clear there is no answer to a question.
            plain = await Panel(f"127.0.0.1:{port}").exchange(closing(PING, header))
            assert b"res" not in plain
    assert not any(TOKEN in line for line in lines)


async def test_the_port_is_taken(certs: Certs, tmp_path: Path) -> None:
    async with multi_user_server(certs) as (_, panel):
        with pytest.raises(StartError, match="cannot listen"):
            async with multi_user_server(certs, c=panel.address, db=str(tmp_path / "db")):
                pass
    async with multi_user_server(certs, db=str(tmp_path / "db")) as (_, panel):
        assert await panel.command(9) == {"res": 1}  # the database was closed


# Patience.


@pytest.mark.parametrize(
    ("limit", "sent"),
    [
        ("head", b""),
        ("head", b"POST / HTTP/1.1\r\nHost: loc"),
        ("body", b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{"),
        ("keepalive", post(PING)),
    ],
)
async def test_slow_clients_are_closed(
    limit: str, sent: bytes, certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = OPERATORS._make([600.0] * 3)  # longer than any test, so none of the others does it
    monkeypatch.setattr(control, "OPERATORS", patient._replace(**{limit: 0.1}))
    async with multi_user_server(certs) as (_, panel):
        reader, writer = await panel.connect()
        writer.write(sent)
        await reader.read()
        writer.close()
        await writer.wait_closed()
        monkeypatch.setattr(control, "OPERATORS", patient)
        assert await panel.command(9) == {"res": 1}


async def test_strangers_cannot_keep_the_panel_out(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "MAX_STRANGERS", 5)
    async with multi_user_server(certs) as (server, panel):
        known = await panel.connect()
        known[1].write(post(PING))
        await known[0].readuntil(b"}")
        strangers = [await panel.connect() for _ in range(10)]
        # A request that is refused leaves its client a stranger.
        for _, writer in strangers[5:]:
            writer.write(post(PING, "Origin: http://evil.example"))
        strangers += [await panel.connect() for _ in range(10)]
        assert await panel.command(9) == {"res": 1}
        controller = server._management.controller
        assert controller is not None
        await eventually(lambda: len(controller._transports) <= 6)
        known[1].write(post(PING))
        assert b'{"res":1}' in await known[0].readuntil(b"}")
        for _, writer in (known, *strangers):
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        await eventually(lambda: not controller._transports and not controller._strangers)
        assert not controller._idle


async def test_parallel_commands_are_all_answered(certs: Certs) -> None:
    """Every connection is made before the first one says anything."""
    async with multi_user_server(certs) as (server, panel):
        connections = [await panel.connect() for _ in range(150)]
        bunch = [{"path": f"/{number}", "dst": "h:1"} for number in range(300)]
        add = json.dumps({"opt": 1, "args_bunch": bunch}).encode()
        for number, (_, writer) in enumerate(connections):
            writer.write(closing(PING if number % 5 else add))
        for reader, writer in connections:
            assert status(await reader.read()) == 200
            writer.close()
            await writer.wait_closed()
        controller = server._management.controller
        assert controller is not None
        await eventually(lambda: not controller._transports)


async def test_stalled_bodies_have_a_bound_in_sum(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, turns)
    big = closing(PING + b" " * (BODY_LIMIT // 2))
    half = BODY_LIMIT // 4
    head = big.index(b"\r\n\r\n") + 4
    async with multi_user_server(certs) as (server, panel):
        stalled = [await panel.connect() for _ in range(80)]
        for _, writer in stalled:
            writer.write(big[:half])
        controller = server._management.controller
        assert controller is not None

        def received() -> list[int]:
            servers: list[Any] = [each.get_protocol() for each in controller._transports]
            assert all(isinstance(each, HttpServer) for each in servers)
            exchanges = [server._exchange for server in servers]
            return [head + each._received if each is not None else 0 for each in exchanges]

        most = turns.MAX_LARGE_TURNS * half
        await eventually(lambda: sum(size == half for size in received()) == 16)
        await eventually(lambda: all(received()))
        assert sum(received()) < most + 64 * 2 * LARGE_READ
        # Small commands pass, the liveness check as well, and another large one has its turn.
        assert await panel.command(9) == {"res": 1}
        assert status(await panel.exchange(b"GET /healthz HTTP/1.0\r\n\r\n")) == 200
        late = asyncio.create_task(panel.exchange(big))
        while not late.done():
            await clock.passes(turns.LOOK_INTERVAL)
            await asyncio.sleep(0.01)  # for the kernel
            assert sum(received()) < most + 64 * 2 * LARGE_READ
        assert status(late.result()) == 200
        for _, writer in stalled:
            writer.transport.abort()
        await eventually(lambda: not controller._transports)


async def test_a_full_line_of_requests_is_answered_503(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "MAX_LARGE_TURNS", 1)
    monkeypatch.setattr(turns, "MAX_WAITING", 0)
    async with multi_user_server(certs) as (server, panel):
        _, holder = await panel.connect()
        holder.write(b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        controller = server._management.controller
        assert controller is not None
        await eventually(lambda: controller._turns._holders)
        answer = await panel.exchange(closing(PING + b" " * turns.SMALL))
        assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n")
        assert b"try again later" in answer
        assert await panel.command(9) == {"res": 1}
        holder.close()
        await holder.wait_closed()


async def test_refusals_do_not_flood_the_log(certs: Certs) -> None:
    with logged() as lines:
        async with multi_user_server(certs) as (_, panel):
            for _ in range(20):
                answer = await panel.exchange(closing(PING, host="evil.example"))
                assert status(answer) == 403
    assert sum("Host is not" in line for line in lines) == 1


async def test_requests_that_come_together_let_others_have_their_turn(certs: Certs) -> None:
    async with multi_user_server(certs) as (server, panel):
        controller = server._management.controller
        assert controller is not None
        turns_of_others, commands = 0, 0
        done = asyncio.Event()

        async def run(body: bytes) -> tuple[int, bytes]:
            nonlocal commands
            commands += 1
            return 200, b"{}"

        async def other() -> None:
            nonlocal turns_of_others
            while not done.is_set():
                turns_of_others += bool(commands)
                await asyncio.sleep(0)

        controller._run = run
        task = asyncio.create_task(other())
        answer = await panel.exchange(post(PING) * 100 + closing(PING))
        done.set()
        await task
        assert answer.count(b"HTTP/1.1 200 OK") == commands == 101
        assert turns_of_others >= commands - 1


async def test_a_panel_that_leaves_has_its_command_done(certs: Certs) -> None:
    body = b'{"opt":1,"args_bunch":[{"path":"/a","dst":"h:1"}]}'
    async with multi_user_server(certs) as (server, panel):
        _, writer = await panel.connect()
        writer.write(post(body))
        writer.close()
        await writer.wait_closed()
        await eventually(lambda: "/a" in server._users)


async def test_a_command_that_has_begun_is_done_whatever_becomes_of_its_client(
    certs: Certs,
) -> None:
    async with multi_user_server(certs) as (server, panel):
        controller = server._management.controller
        assert controller is not None
        begun, going_on, done = (asyncio.Event() for _ in range(3))

        async def run(body: bytes) -> tuple[int, bytes]:
            begun.set()
            await going_on.wait()
            done.set()
            return 200, b"{}"

        controller._run = run
        async with await connect(int(panel.address.rpartition(":")[2])) as client:
            await client.send(post(PING))
            await begun.wait()
            client.reset()
        await eventually(lambda: not controller._transports)
        assert controller._turns._holders  # what it has in memory counts as long as it is there
        going_on.set()
        await done.wait()
        await eventually(lambda: not controller._turns._holders)


async def test_connections_that_end_are_not_idle(certs: Certs) -> None:
    async with multi_user_server(certs) as (server, panel):
        controller = server._management.controller
        assert controller is not None
        for request, idle in ((post(PING), 1), (closing(PING), 0)):
            async with await connect(int(panel.address.rpartition(":")[2])) as client:
                await client.send(request)
                assert await client.until(b"}") != b""
                await eventually(lambda: not controller._tasks)
                assert (len(controller._transports), len(controller._idle)) == (1, idle)
            await eventually(lambda: not controller._transports)


async def test_a_client_that_does_not_read_its_answers(certs: Certs) -> None:
    """It stops being served; nothing piles up."""
    async with multi_user_server(certs) as (server, panel):
        users = [{"path": f"/{number}", "dst": "h:1"} for number in range(1000)]
        await panel.command(1, *users)
        _, writer = await panel.connect()
        writer.write(post(b'{"opt":4}') * 3000)
        await asyncio.sleep(0.3)
        controller = server._management.controller
        assert controller is not None
        (transport,) = controller._transports
        assert transport.get_write_buffer_size() < 1_000_000
        held = transport.get_protocol()
        assert isinstance(held, HttpServer)
        assert len(held._buffer) <= 2 * LARGE_READ  # uvloop reads twice at a time
        writer.transport.abort()
        await eventually(lambda: not controller._transports)
