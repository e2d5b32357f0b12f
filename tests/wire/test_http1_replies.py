"""Heads of HTTP responses, and replies as the Go programs lay them out."""

from __future__ import annotations

import pytest

from mtt.wire.http1 import HttpError, Reply, parse_response, text_reply
from tests.support.vectors import WSS, handshake
from tests.wire.http_heads import get

DATE = "Mon, 02 Jan 2006 15:04:05 GMT"


# Responses.


@pytest.mark.parametrize("name", WSS)
def test_recorded_responses_are_understood(name: str) -> None:
    response = parse_response(handshake(name)[1])
    assert (response.status, response.reason) == (101, "Switching Protocols")
    assert response.first("connection") == "Upgrade"
    assert len(response.headers) == 4


def test_a_response_needs_no_reason() -> None:
    assert parse_response(b"HTTP/1.0 204\r\n\r\n").reason == ""
    assert parse_response(b"HTTP/1.1 404 \r\n\r\n").reason == ""
    assert parse_response(b"HTTP/1.1 404 Not Found\r\n\r\n").version == (1, 1)


@pytest.mark.parametrize(
    "head",
    [
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n",
    ],
)
def test_invalid_responses_are_refused(head: bytes) -> None:
    with pytest.raises(HttpError) as caught:
        parse_response(head)
    assert caught.value.status == 502


# Replies.


def test_replies_are_laid_out_as_by_go() -> None:
    reply = text_reply(400, "Bad Request", ("Sec-Websocket-Version", "13"))
    head = (
        b"400 Bad Request\r\n"
        b"Content-Type: text/plain; charset=utf-8\r\n"
        b"Sec-Websocket-Version: 13\r\n"
        b"X-Content-Type-Options: nosniff\r\n"
        b"Date: Mon, 02 Jan 2006 15:04:05 GMT\r\n"
        b"Content-Length: 12\r\n"
    )
    body = b"Bad Request\n"
    alive, closing = get(), get("Connection: close")
    assert reply.encode(alive, date=DATE, close=False) == b"HTTP/1.1 " + head + b"\r\n" + body
    close = b"Connection: close\r\n\r\n"
    assert reply.encode(closing, date=DATE, close=True) == b"HTTP/1.1 " + head + close + body
    old = get(version="1.0")
    assert reply.encode(old, date=DATE, close=True) == b"HTTP/1.0 " + head + b"\r\n" + body
    alive_line = b"Connection: keep-alive\r\n\r\n"
    assert reply.encode(old, date=DATE, close=False) == b"HTTP/1.0 " + head + alive_line + body


def test_head_gets_no_body_and_an_empty_reply_a_length() -> None:
    reply = text_reply(404, "404 page not found")
    sent = reply.encode(get(method="HEAD"), date=DATE, close=False)
    assert b"\r\nContent-Length: 19\r\n" in sent
    assert sent.endswith(b"\r\n\r\n")
    empty = Reply(200)
    assert empty.encode(get(), date=DATE, close=False) == (
        b"HTTP/1.1 200 OK\r\nDate: Mon, 02 Jan 2006 15:04:05 GMT\r\nContent-Length: 0\r\n\r\n"
    )
    assert b"Content-Length" not in empty.encode(get(method="HEAD"), date=DATE, close=False)


def test_a_reply_that_closes_says_so_once() -> None:
    reply = Reply(400, (("Connection", "close"),))
    assert reply.closes
    assert reply.encode(get(), date=DATE, close=True).count(b"Connection: close") == 1
