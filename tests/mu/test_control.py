"""The controller's endpoint: HTTP on real sockets."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest

from mtt.wire.http1 import MAX_HEAD
from mtt.wire.httpbody import MAX_LINE, MAX_TRAILERS
from mtt_mu_server.api import BODY_LIMIT
from tests.mu.panel import multi_user_server
from tests.mu.posting import PING, closing, post, status
from tests.support.certs import Certs
from tests.support.tunnels import connect


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
            assert b'{"res":2,"err_string":"body: must be smaller than 2097152' in answer
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


async def test_truncated_head_is_a_bad_request(certs: Certs) -> None:
    async with (
        multi_user_server(certs) as (_, panel),
        await connect(panel.port) as client,
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
        answer = b'{"res":2,"err_string":"method: commands must use POST"}'
        assert body == (b"" if method == "HEAD" else answer)


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
