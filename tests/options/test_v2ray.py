"""-v2ray of mtt-client and mtt-server."""

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
