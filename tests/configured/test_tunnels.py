"""Several tunnels in one process: what they share, and what tells them apart."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mtt.errors import StartError
from mtt.log import LineFormatter, subject
from mtt.trust import child, identity
from tests.support.certs import Certs
from tests.support.configured import (
    File,
    certified,
    plain,
    port_of_tunnel,
    running,
    trusting,
    tunnel_named,
)
from tests.support.metrics import parse
from tests.support.tunnels import (
    check_works,
    client_of,
    connect,
    echo,
    eventually,
    listening,
    server_at,
    serving,
)


@contextlib.contextmanager
def written() -> Iterator[list[str]]:
    """The lines of the log without the time, all levels."""
    lines: list[str] = []
    handler = logging.Handler()
    formatter = LineFormatter("p")
    handler.emit = lambda record: lines.append(  # type: ignore[method-assign]
        formatter.format(record).split(" ", 2)[2]
    )
    log = logging.getLogger("mtt")
    before = log.level
    log.setLevel(logging.DEBUG)
    log.addHandler(handler)
    try:
        yield lines
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


def figures(page: str, name: str) -> dict[str, float]:
    """The samples of a metric, by their labels."""
    return {
        key.partition("{")[2].rstrip("}"): value
        for key, value in parse(page).items()
        if key.partition("{")[0] == name
    }


async def test_metrics_have_a_label_only_if_there_are_several(
    certs: Certs, tmp_path: Path
) -> None:
    async with serving(echo) as there:
        top = certified(certs)
        file = File(tmp_path, top | {"tunnel": [plain("one", there.port)]})
        async with running(file) as tunnels:
            assert figures(tunnels.metrics_page(), "mtt_connections_total") == {"": 0}
        file = File(
            tmp_path,
            top | {"tunnel": [plain("one", there.port), plain("t2", there.port)]},
        )
        async with running(file) as tunnels:
            async with client_of("tls", port_of_tunnel(tunnels, "t2"), certs) as client:
                await check_works(int(client.addresses[0].rpartition(":")[2]))
            page = tunnels.metrics_page()
            assert figures(page, "mtt_connections_total") == {'tunnel="one"': 0, 'tunnel="t2"': 1}
            up = figures(page, "mtt_transferred_bytes_total")
            assert up['tunnel="t2",direction="up"'] == len(b"still works")
            assert up['tunnel="one",direction="up"'] == 0
            assert list(figures(page, "mtt_start_time_seconds")) == [""]
            assert page.count("# HELP mtt_tunnels ") == 1


async def test_counters_go_on_when_a_tunnel_changes(certs: Certs, tmp_path: Path) -> None:
    async with serving(echo) as there, server_at("tls", there.port, certs) as server:
        one: dict[str, Any] = {
            "name": "one", "b": "127.0.0.1:0", "s": server.addresses[0],
        }  # fmt: skip
        file = File(tmp_path, trusting(certs) | {"tunnel": [one]}, "mtt-client")
        async with running(file) as tunnels:
            await check_works(port_of_tunnel(tunnels, "one"))
            before = tunnel_named(tunnels, "one")
            file.write(trusting(certs) | {"tunnel": [one | {"timeout": "1m"}]})
            tunnels.reload()
            await eventually(lambda: tunnels.running != [before] and not tunnels.leaving)
            await check_works(port_of_tunnel(tunnels, "one"))
            assert figures(tunnels.metrics_page(), "mtt_tunnels_opened_total") == {"": 2}
            assert figures(tunnels.metrics_page(), "mtt_connections_total") == {"": 2}


async def test_metrics_of_a_removed_tunnel_are_gone(certs: Certs, tmp_path: Path) -> None:
    top = certified(certs)
    file = File(tmp_path, top | {"tunnel": [plain("one", 1), plain("two", 1), plain("three", 1)]})
    async with running(file) as tunnels:
        file.write(top | {"tunnel": [plain("one", 1), plain("two", 1)]})
        tunnels.reload()
        await eventually(lambda: len(tunnels.running) == 2 and not tunnels.leaving)
        page = tunnels.metrics_page()
        assert list(figures(page, "mtt_tunnels")) == ['tunnel="one"', 'tunnel="two"']


async def test_one_metrics_server(certs: Certs, tmp_path: Path) -> None:
    top = certified(certs) | {"metrics": "127.0.0.1:0"}
    file = File(tmp_path, top | {"tunnel": [plain("one", 1), plain("two", 1)]})
    async with running(file) as tunnels:
        (address,) = tunnels.metrics_addresses
        async with await connect(int(address.rpartition(":")[2])) as scraper:
            await scraper.send(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")
            page = (await scraper.rest()).decode()
        assert 'mtt_tunnels{tunnel="two"} 0' in page
        assert "mtt_event_loop_lag_seconds_count " in page


async def test_log_lines_begin_with_the_name(certs: Certs, tmp_path: Path) -> None:
    """Those that a timer or a new connection causes, and those that data on a socket causes."""
    async with serving(echo) as there:
        content = certified(certs) | {
            "tunnel": [plain("one", there.port), plain("two", there.port, wss=True)]
        }
        file = File(tmp_path, content)
        with written() as lines:
            async with running(file) as tunnels:
                tunnels.announce()
                async with client_of("tls", port_of_tunnel(tunnels, "one"), certs) as client:
                    await check_works(int(client.addresses[0].rpartition(":")[2]))
                async with await connect(port_of_tunnel(tunnels, "two")) as stranger:
                    await stranger.send(b"\x16\x03\x01\x00\x05hello")
                    await stranger.rest()
                await eventually(lambda: any(": closed after" in line for line in lines))
    listening_lines = [line for line in lines if ": listening on " in line]
    assert [line.split(", ")[:2][1] for line in listening_lines] == ["tls", "wss"]
    for name, line in zip(("one", "two"), listening_lines, strict=True):
        assert line.startswith(f"INFO p: {name}: listening on 127.0.0.1:")
    (closed,) = (line for line in lines if ": closed after" in line and " one: " in line)
    assert closed.startswith("DEBUG p: one: 127.0.0.1:")
    assert any(line.startswith("WARNING p: two: 127.0.0.1:") for line in lines)


async def test_a_single_tunnel_has_no_name_in_the_log(certs: Certs, tmp_path: Path) -> None:
    file = File(tmp_path, certified(certs) | {"tunnel": [plain("one", 1)]})
    with written() as lines:
        async with running(file) as tunnels:
            tunnels.announce()
    assert any(line.startswith("INFO p: listening on ") for line in lines)
    assert subject.get() is None


async def test_a_certificate_of_several_tunnels_is_described_once(
    certs: Certs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described: list[object] = []
    describe = child.run

    def counted(work: Any, *arguments: Any) -> Any:
        described.append(work)
        return describe(work, *arguments)

    top = certified(certs)
    content = [plain(name, 1) for name in ("one", "two", "three")]
    content.append(plain("four", 1, cert=certs.other_cert, key=certs.other_key))
    file = File(tmp_path, top | {"tunnel": content})
    identity._words.cache_clear()
    monkeypatch.setattr(identity, "WORDS_TIME", 1e9)  # not between two of its periods
    async with running(file) as tunnels:
        monkeypatch.setattr(child, "run", counted)
        with written() as lines:
            tunnels.announce()
            assert len([line for line in lines if " pin sha256/" in line]) == 4
            tunnels.reload()
            await eventually(lambda: sum("reloaded: certificate" in line for line in lines) == 4)
    assert len(described) == 2


async def test_errors_at_the_start_name_the_tunnel(certs: Certs, tmp_path: Path) -> None:
    async with listening() as taken:
        content = {"tunnel": [plain("one", 1), plain("two", 1, taken.port)]}
        tunnels = File(tmp_path, certified(certs) | content).tunnels()
        with pytest.raises(StartError, match=r'^tunnel\[1\] "two": cannot listen on 127\.0\.0\.1:'):
            await tunnels.start()
        assert tunnels.addresses == [] or not tunnel_named(tunnels, "one").service.is_listening


async def test_a_limit_of_all_tunnels_together(certs: Certs, tmp_path: Path) -> None:
    async with serving(echo) as there, server_at("tls", there.port, certs) as server:
        def content(limit: int) -> dict[str, Any]:
            tunnels = [
                {"name": name, "b": "127.0.0.1:0", "s": server.addresses[0]} for name in ("a", "b")
            ]
            tunnels[0]["max-conns"] = 5  # type: ignore[assignment]
            return trusting(certs) | {"max-conns": limit, "tunnel": tunnels}

        file = File(tmp_path, content(2), "mtt-client")
        with written() as lines:
            async with running(file) as tunnels, contextlib.AsyncExitStack() as stack:
                ports = [port_of_tunnel(tunnels, name) for name in ("a", "b")]
                for port in ports:
                    one = await stack.enter_async_context(await connect(port))
                    await one.check_echo()
                for port in ports:
                    async with await connect(port) as third:
                        with pytest.raises(ConnectionResetError):
                            await third.check_echo()
                refused = figures(tunnels.metrics_page(), "mtt_connections_refused_total")
                assert refused == {'tunnel="a"': 1, 'tunnel="b"': 1}
                file.write(content(3))
                tunnels.reload()
                await eventually(lambda: any("reloaded: max-conns" in line for line in lines))
                await check_works(ports[0])
    assert any("a connection was refused: -max-conns 2 is reached" in line for line in lines)


async def test_the_end_waits_for_all_tunnels(certs: Certs, tmp_path: Path) -> None:
    async with serving(echo) as there, server_at("tls", there.port, certs) as server:
        tunnels_ = [
            {"name": name, "b": "127.0.0.1:0", "s": server.addresses[0]} for name in ("a", "b")
        ]
        file = File(tmp_path, trusting(certs) | {"tunnel": tunnels_}, "mtt-client")
        async with running(file) as tunnels:
            async with await connect(port_of_tunnel(tunnels, "b")) as one:
                await one.check_echo()
                drain = asyncio.create_task(tunnels.drain())
                await eventually(
                    lambda: not any(each.service.is_listening for each in tunnels.running)
                )
                await one.check_echo()
                assert not drain.done()
            await drain
