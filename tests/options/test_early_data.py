"""-early-data, and -v2ray, which it needs."""

from __future__ import annotations

import pytest

from mtt.errors import UsageError
from tests.options.test_options import client, server


def test_v2ray_implies_websocket() -> None:
    for given, mode in ((["-v2ray"], "v2ray"), (["-v2ray", "-mux", "-wss"], "v2ray+mux")):
        for options in (client(*given, "-wss-path", "/p"), server(*given, "-wss-path", "/p")):
            assert (options.mode, options.wss, options.wss_path) == (mode, True, "/p")
    assert server("-v2ray", "-fallback", "127.0.0.1:80").fallback is not None
    with pytest.raises(UsageError, match="-anytls and -v2ray exclude each other"):
        client("-v2ray", "-anytls", "-p", "x")


@pytest.mark.parametrize(
    ("given", "path", "size"),
    [
        ([], "/", 0),
        (["-early-data", "2048"], "/", 2048),
        (["-wss-path", "/p?ed=2560"], "/p", 2560),
        (["-wss-path", "/p?a=b&ed=1&c"], "/p?a=b&c", 1),
        (["-wss-path", "/p?bed=1"], "/p?bed=1", 0),
        (["-wss-path", "/p?ed=2048", "-mux"], "/p", 0),
    ],
)
def test_early_data(given: list[str], path: str, size: int) -> None:
    options = client("-v2ray", *given)
    assert (options.wss_path, options.early_data) == (path, size)


def test_path_without_v2ray_is_left_alone() -> None:
    assert client("-wss", "-wss-path", "/p?ed=2048").wss_path == "/p?ed=2048"


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (["-wss", "-early-data", "1"], "-early-data: only meaningful with -v2ray"),
        (["-v2ray", "-early-data", "4097"], "-early-data: the number is not from 0 to 4096"),
        (["-v2ray", "-early-data", "-1"], "-early-data: the number is not from 0 to 4096"),
        (["-v2ray", "-wss-path", "/?ed=many"], "-wss-path: .ed=: the number is not from 0 to 4096"),
        (["-v2ray", "-wss-path", "/?ed=99999999999"], "-wss-path: .ed=: the number"),
        (["-v2ray", "-wss-path", "/?ed=1", "-early-data", "1"], "remove one"),
        (["-v2ray", "-mux", "-early-data", "1"], "-early-data and -mux exclude each other"),
        (["-v2ray", "-preconnect", "1", "-early-data", "1"], "needs a new connection"),
    ],
)
def test_early_data_conflicts(given: list[str], error: str) -> None:
    with pytest.raises(UsageError, match=error):
        client(*given)


def test_server_takes_the_path_of_its_clients() -> None:
    assert server("-v2ray", "-wss-path", "/p?ed=2048").wss_path == "/p"
    for given in (["-v2ray", "-wss-path", "/p?a=b&ed=1"], ["-wss", "-wss-path", "/p?ed=1"]):
        with pytest.raises(UsageError, match="only the path is compared"):
            server(*given)
