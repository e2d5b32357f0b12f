"""Early data in place of a WebSocket's subprotocol."""

from __future__ import annotations

import random

import pytest

from mtt.wire.early_data import MAX_SIZE, MIN_SIZE, decode, encode

PLUGIN = bytes.fromhex("000c00010101010000017f000001000568656c6c6f")


@pytest.mark.parametrize("size", [1, 2, 3, MIN_SIZE - 1, MIN_SIZE, 1000, MAX_SIZE])
def test_data_survives(size: int) -> None:
    data = random.Random(size).randbytes(size)
    value = encode(data)
    assert not set(value) & set("+/= ,")
    assert decode(value, sure=True) == data
    assert decode(value, sure=False) == (data if size >= MIN_SIZE else b"")


def test_value_is_that_of_go_s_raw_url_encoding() -> None:
    assert encode(b"hello") == "aGVsbG8"
    assert encode(b"\xfb\xff\xfe") == "-__-"
    assert encode(PLUGIN) == "AAwAAQEBAQAAAX8AAAEABWhlbGxv"


def test_first_frame_of_v2ray_plugin_is_always_taken() -> None:
    assert len(PLUGIN[:14]) < MIN_SIZE
    assert decode(encode(PLUGIN[:14]), sure=False) == PLUGIN[:14]


@pytest.mark.parametrize(
    "name",
    ["binary", "base64", "chat", "mqtt", "graphql-ws", "graphql-transport-ws", "v12.stomp",
     "ocpp1.6", "janus-protocol", "wamp.2.json", "chisel-v3"],
)  # fmt: skip
def test_names_of_subprotocols_are_not_data(name: str) -> None:
    assert decode(name, sure=False) == b""


@pytest.mark.parametrize("value", ["", "A", "AAAAA", "AB", "AAB", "a+b_", "ab==", "a b", "é"])
def test_invalid_encoding_is_not_early_data(value: str) -> None:
    assert decode(value, sure=True) == b""
