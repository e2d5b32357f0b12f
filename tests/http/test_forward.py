"""The transport of a client whose one request is forwarded, in memory."""

from __future__ import annotations

import logging

import pytest

from mtt.errors import PeerError
from mtt.http.forward import OneRequest
from mtt.wire.httpproxy import Body
from tests.support.transports import FakeTransport, Recorder, turns


def forwarding(body: Body) -> tuple[OneRequest, FakeTransport, Recorder]:
    upper, below = Recorder(), FakeTransport()
    layer = OneRequest(upper, body)
    layer.start(below)
    assert upper.transport is layer
    return layer, below, upper


async def test_the_body_passes_and_what_follows_does_not(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    layer, below, upper = forwarding(Body(5, chunked=False))
    layer.data_received(b"hel")
    layer.data_received(memoryview(b"loGET http://b/"))
    layer.data_received(b" HTTP/1.1\r\n\r\n")
    assert upper.data == b"hello"
    assert below.reading
    assert caplog.text.count("more than the one request") == 1
    layer.eof_received()
    assert upper.eof


async def test_the_answer_passes_unchanged() -> None:
    layer, below, _ = forwarding(Body(0, chunked=False))
    layer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    assert below.take() == b"HTTP/1.1 200 OK\r\n\r\n"
    assert layer.can_write_eof()
    layer.write_eof()
    assert below.eof_written


async def test_a_broken_body_is_an_error_of_the_client() -> None:
    layer, below, upper = forwarding(Body(0, chunked=True))
    layer.data_received(b"5\r\nhello\r\nnonsense\r\n")
    await turns()
    assert below.aborted
    assert upper.lost
    assert isinstance(upper.error, PeerError)
    assert "malformed chunk" in str(upper.error)


@pytest.mark.parametrize("eof", [True, False])
async def test_closing_waits_for_the_client_unless_it_has_ended(eof: bool) -> None:
    layer, below, upper = forwarding(Body(0, chunked=False))
    if eof:
        layer.eof_received()
    layer.close()
    await turns()
    assert below.closing == eof
    assert upper.lost == eof
    below.lose(None)
    await turns()
    assert upper.lost
    assert upper.error is None
