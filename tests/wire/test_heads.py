"""The buffer in which every end of ours looks for heads."""

from __future__ import annotations

import pytest

from mtt.wire.heads import MAX_INTERIM, HeadBuffer, InterimError
from mtt.wire.http1 import MAX_HEAD, HttpError

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_heads_in_pieces_are_taken_one_by_one(size: int) -> None:
    buffer, heads = HeadBuffer(), []
    wire = GET + GET.replace(b"\r", b"") + GET
    for at in range(0, len(wire), size):
        buffer += wire[at : at + size]
        while (end := buffer.head_end(of_request=True)) >= 0:
            heads.append(buffer.take(end))
    assert heads == [GET, GET.replace(b"\r", b""), GET]
    assert not buffer


def test_next_head_is_found_after_drop() -> None:
    buffer = HeadBuffer()
    buffer += GET[:-1]
    assert buffer.head_end() == -1
    buffer.drop(len(GET) - 4)
    buffer += b"\n"
    assert buffer.head_end() == 4


@pytest.mark.parametrize("cut", [1, MAX_HEAD - 1, MAX_HEAD, MAX_HEAD + 1])
@pytest.mark.parametrize("excess", [0, 1])
def test_heads_have_a_bound(excess: int, cut: int) -> None:
    buffer = HeadBuffer()
    head = GET[:-2] + b"X: " + b"x" * (MAX_HEAD + excess - len(GET) - 5) + b"\r\n\r\n"

    def fill() -> int:
        nonlocal buffer
        buffer += head[:cut]
        buffer.head_end(of_request=True)
        buffer += head[cut:]
        return buffer.head_end(of_request=True)

    assert len(head) == MAX_HEAD + excess
    if excess:
        with pytest.raises(HttpError) as caught:
            fill()
        assert caught.value.status == 431
    else:
        assert fill() == MAX_HEAD


@pytest.mark.parametrize(("line", "status"), [(b"SSH-2.0-x\r\n", 400), (b"PRI * HTTP/2.0\n", 505)])
@pytest.mark.parametrize("more", [b"", b"x" * MAX_HEAD])
def test_another_protocol_is_refused_at_its_first_line(
    line: bytes, status: int, more: bytes
) -> None:
    buffer = HeadBuffer()
    for byte in line[:-1]:
        buffer.append(byte)
        assert buffer.head_end(of_request=True) == -1
    buffer += line[-1:] + more
    with pytest.raises(HttpError) as caught:
        buffer.head_end(of_request=True)
    assert caught.value.status == status


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_final_response_is_found_behind_interim_ones(size: int) -> None:
    buffer, found = HeadBuffer(), []
    wire = b"HTTP/1.1 100 Continue\r\n\r\n" * MAX_INTERIM + b"HTTP/1.1 200 OK\r\n\r\n"
    for at in range(0, len(wire), size):
        buffer += wire[at : at + size]
        found.append(buffer.final_response())
    assert found[:-1] == [None] * (len(found) - 1)
    assert found[-1] is not None
    assert found[-1].status == 200
    assert not buffer


def test_interim_responses_have_a_bound() -> None:
    buffer = HeadBuffer()
    buffer += b"HTTP/1.1 103 Early Hints\r\n\r\n" * (MAX_INTERIM + 1)
    with pytest.raises(InterimError, match="more than 5 interim responses"):
        buffer.final_response()


def test_101_is_final() -> None:
    buffer = HeadBuffer()
    buffer += b"HTTP/1.1 101 Switching Protocols\r\n\r\nmore"
    response = buffer.final_response()
    assert response is not None
    assert (response.status, bytes(buffer)) == (101, b"more")
