"""The pure parts of the bench: what it makes of the tools' output, and the tables."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from bench import __main__ as command
from bench import gateway, peers, report, tools
from bench.certs import Certs
from bench.chart import PANELS, _bars
from bench.destination import start_echo
from bench.handshake import FULL as FULL_HANDSHAKE
from bench.handshake import measure_handshake
from bench.layers import STACKS, measure_layers
from bench.loads import QUICK, Scene
from bench.processes import BenchError, Programs, listening_ports
from bench.results import Run, Store
from bench.rows import Bench, Cell, Column, Ratio, Row
from bench.subjects import Place, Subject
from bench.targets import TARGETS, Target, met, value
from tests.support.programs import require_package

IPERF = {"end": {"sum_received": {"bytes": 1_000_000_000, "seconds": 2.0}}}

WRK = """\
Running 1s test @ http://127.0.0.1:20000/
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.12ms  610.00us  12.30ms   91.00%
    Req/Sec    27.10k     1.20k   28.40k    70.00%
  Latency Distribution
     50%  950.00us
     75%    1.30ms
     90%    1.80ms
     99%    1.05s
  27200 requests in 1.00s, 7.10MB read
Requests/sec:  27150.42
Transfer/sec:      7.08MB
"""

AB = """\
Concurrency Level:      16
Time taken for tests:   2.001 seconds
Complete requests:      2300
Failed requests:        0
Total transferred:      600000 bytes
Requests per second:    1149.43 [#/sec] (mean)
"""

PROC_NET_TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:14B5 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1
   1: 0100007F:14B6 0100007F:14B5 01 00000000:00000000 00:00000000 00000000     0        0 2 1
   2: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0
"""


def test_iperf() -> None:
    transfer = tools.parse_iperf(json.dumps(IPERF))
    assert transfer.size == 1_000_000_000
    assert transfer.gbit == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no result"),
        ("[]", "no result"),
        ('{"end": {}}', "no result"),
        ('{"end": {}, "error": "unable to connect"}', "unable to connect"),
        ('{"end": {"sum_received": {"bytes": 0, "seconds": 1}}}', "nothing"),
    ],
)
def test_iperf_failure(text: str, message: str) -> None:
    with pytest.raises(BenchError, match=message):
        tools.parse_iperf(text)


def test_wrk() -> None:
    result = tools.parse_wrk(WRK)
    assert result.answers == 27200
    assert (result.rate, result.p50, result.p99) == pytest.approx((27150.42, 0.95, 1050.0))


@pytest.mark.parametrize(
    "text",
    [
        "",
        WRK.replace("Requests/sec:", "Nothing:"),
        WRK.replace("27150.42", "0.00"),
        WRK + "  Socket errors: connect 0, read 3, write 0, timeout 0\n",
        WRK + "  Non-2xx or 3xx responses: 5\n",
    ],
)
def test_wrk_failure(text: str) -> None:
    with pytest.raises(BenchError, match="wrk"):
        tools.parse_wrk(text)


def test_ab() -> None:
    result = tools.parse_ab(AB)
    assert result.made == 2300
    assert result.rate == pytest.approx(1149.43)


@pytest.mark.parametrize(
    "text",
    [
        "",
        AB.replace("Complete requests", "Requests"),
        AB.replace("Failed requests:        0", "Failed requests:        7"),
        AB + "Non-2xx responses:      2300\n",
    ],
)
def test_ab_failure(text: str) -> None:
    with pytest.raises(BenchError, match="ab"):
        tools.parse_ab(text)


def test_listening_ports() -> None:
    assert listening_ports(PROC_NET_TCP) == {0x14B5, 0x50}
    assert listening_ports("") == set()


def a_run(**cells: list[float]) -> Run:
    return Run({"cells": {"row": {cell: [{"speed": v} for v in cells[cell]] for cell in cells}}})


def test_medians_and_ratios() -> None:
    run = a_run(ours=[2.0, 30.0, 4.0], theirs=[1.0, 10.0, 4.0], idle=[0.0])
    assert run.median("row", "ours", "speed") == 4.0
    assert run.median("row", "ours", "colour") is None
    assert run.median("row", "nobody", "speed") is None
    # Per round 2, 3 and 1. The ratio of the medians would be 1.
    assert run.ratio("row", "ours", "speed", "theirs") == 2.0
    assert run.ratio("row", "ours", "speed", "nobody") is None
    assert run.ratio("row", "ours", "speed", "idle") is None


def test_targets() -> None:
    run = a_run(ours=[3.0], theirs=[2.0])
    least = Target("speed", "row", "speed", "ours", "theirs", 1.5)
    assert value(least, run) == 1.5
    assert met(least, 1.5)
    assert not met(least, 1.49)
    most = least._replace(against="", at_most=True, limit=3.0)
    assert value(most, run) == 3.0
    assert met(most, 3.0)
    assert not met(most, 3.01)


def a_row(ratios: tuple[Ratio, ...] = (Ratio("speed", ("theirs", "absent")),)) -> Row:
    def never() -> dict[str, float]:
        raise AssertionError

    cells = tuple(Cell(name, never) for name in ("ours", "theirs", "absent"))
    columns = (Column("speed", "GB/s", ".1f"), Column("colour", "colour", ".0f"))
    return Row("row", "A row", columns, cells, ratios)


def test_row_table() -> None:
    run = a_run(ours=[3.0], theirs=[2.0])
    assert report.row_table(a_row(), run) == (
        "|        | GB/s | x theirs |\n"
        "|--------|-----:|---------:|\n"
        "| ours   |  3.0 |     1.50 |\n"
        "| theirs |  2.0 |     1.00 |"
    )


def test_report_says_what_is_missing() -> None:
    about = {"commit": "abc", "rounds": 3, "machine": dict.fromkeys(
        ("cpu", "cores", "system", "python", "openssl"), "?")}  # fmt: skip
    text = report.report([a_row()], a_run(), about, {"row": {"x": "no tool", "y": "no tool"}})
    assert "- x, y (row): no tool" in text
    assert "targets" not in text


def test_rows_columns_and_targets_fit_together() -> None:
    subjects = [Subject(name, client=lambda place: []) for name in ("tls", "mux", *peers.NAMES)]
    with Bench(QUICK, subjects) as bench:
        rows = {row.name: row for row in bench.rows()}
    assert tuple(rows) == command.ROWS
    for row in rows.values():
        keys = {column.key for column in row.columns}
        assert {ratio.column for ratio in row.ratios} <= keys
        assert len(keys) == len(row.columns)
    for target in TARGETS:
        assert target.column in {column.key for column in rows[target.row].columns}
    for panel in PANELS:
        assert panel.column in {column.key for column in rows[panel.row].columns}
    assert FULL_HANDSHAKE in {cell.name for cell in rows["conns"].cells}


def test_chart_shows_ours_before_peers() -> None:
    run = Run({"cells": {"bulk": {"stunnel": [{"worst": 2.0}], "tls": [{"worst": 3.0}]}}})
    subjects = [Subject(name, client=lambda place: []) for name in ("stunnel", "tls")]
    with Bench(QUICK, subjects) as bench:
        assert _bars(bench.rows(), run, PANELS[0], {"tls"}) == [("tls", 1.5), ("stunnel", 1.0)]


def test_results_are_kept_per_commit_and_machine(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    store = Store(path, "one", {"commit": "1"}, fresh=False)
    store.run.add("bulk", "tls", {"up": 6.123456})
    store.save()
    other = Store(path, "two", {"commit": "2"}, fresh=False)
    assert other.run.samples("bulk", "tls") == []
    other.save()
    again = Store(path, "one", {"commit": "1"}, fresh=False)
    assert again.run.samples("bulk", "tls") == [{"up": 6.123}]
    fresh = Store(path, "one", {"commit": "1"}, fresh=True)
    assert fresh.run.samples("bulk", "tls") == []


def test_damaged_results_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text('{"runs": 7}')
    Store(path, "one", {}, fresh=False).save()
    assert list(json.loads(path.read_text())["runs"]) == ["one"]


def test_measuring_takes_what_is_missing_and_notes_failures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def works() -> dict[str, float]:
        calls.append("tls")
        return {"speed": 1.0}

    def fails() -> dict[str, float]:
        calls.append("broken")
        raise BenchError("no answer")

    cells = (Cell("tls", works), Cell("broken", fails), Cell("absent", fails, "not installed"))
    row = Row("row", "A row", (), cells)
    effort = dataclasses.replace(QUICK, rounds=2)
    store = Store(tmp_path / "results.json", "key", {}, fresh=False)
    store.run.add("row", "tls", {"speed": 2.0})
    notes, failed = command.measure([row], effort, store)
    assert calls == ["broken", "tls"]
    assert notes == {"row": {"broken": "no answer", "absent": "not installed"}}
    assert failed
    assert store.run.samples("row", "tls") == [{"speed": 2.0}, {"speed": 1.0}]
    assert "no answer" in capsys.readouterr().err


def test_a_peer_from_the_environment(tmp_path: Path) -> None:
    places = {"PEER_CLIENT": "c -l {listen} -s '{connect}' {ca}", "PEER_SERVER": "s {dest_port}"}
    peer = peers.peer_subjects(places)[-1]
    place = Place(1, 2, Certs("ca.pem", "cert.pem", "key.pem"), tmp_path)
    assert peer.client is not None
    assert peer.server is not None
    assert peer.client(place) == ["c", "-l", "127.0.0.1:1", "-s", "127.0.0.1:2", "ca.pem"]
    assert peer.server(place) == ["s", "2"]
    assert not peer.missing
    assert "PEER_CLIENT" in peers.peer_subjects({})[-1].missing


def test_a_gateway_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    require_package("yaml")
    assert gateway.peer_missing() == "PEER_GATEWAY and PEER_AGENT are not set"
    for role, file in (("gateway", "gateway"), ("client", "agent")):
        line = f"{sys.executable} -m anyproxy.{role}_command --config {{{file}}}"
        monkeypatch.setenv(f"PEER_{file.upper()}", line)
    assert not gateway.peer_missing()
    with Bench(QUICK, []) as bench, Programs(tmp_path) as programs:
        scene = Scene(programs, bench.certs, tmp_path, QUICK)
        with (
            gateway.pair(scene, gateway.peer_command) as both,
            gateway.by_socks5(both, start_echo(programs)) as connection,
        ):
            connection.sendall(b"?")
            assert connection.recv(1) == b"?"


def test_subjects_are_selected_by_name() -> None:
    known = [Subject("tls"), Subject("wss"), Subject("direct")]
    assert command.select_subjects(known, "", quick=False) == known
    assert command.select_subjects(known, "", quick=True) == known[:2]
    assert command.select_subjects(known, " direct ,tls", quick=True) == [known[0], known[2]]
    with pytest.raises(SystemExit, match="tsl"):
        command.select_subjects(known, "tsl", quick=False)


@pytest.mark.parametrize("name", STACKS)
def test_layers_carry_what_they_are_given(name: str) -> None:
    """`measure_layers` itself checks that no byte is lost."""
    with Bench(QUICK, []) as bench:
        sample = measure_layers(STACKS[name], bench.certs, 0.001)
    assert set(sample) == {"send", "receive", "small"}


def test_handshakes_are_resumed_when_they_should_be() -> None:
    """`measure_handshake` itself checks that they are."""
    with Bench(QUICK, []) as bench:
        sample = measure_handshake(bench.certs, resumed=True, count=2)
    assert set(sample) == {"client_us", "server_us"}
