"""The dashboard and the alert rules: their metrics exist, and promtool accepts them."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.anyproxy.serving import both as gateway_and_agent
from tests.anytls.proxying import check_echo, client_for
from tests.anytls.serving import server_for
from tests.mu.users import one_user
from tests.support.certs import Certs
from tests.support.metrics import check_with_promtool, get, parse
from tests.support.programs import require_program
from tests.support.tunnels import both_ends, check_works, client_of, echo, port_of, serving

ROOT = Path(__file__).parents[1]
PROMETHEUS = ROOT / "contrib" / "prometheus"
DASHBOARD = json.loads((ROOT / "contrib" / "grafana" / "mos-tls-tunnel.json").read_text())

METRIC = re.compile(r"\b(?:mtt|process)_[a-z_]+")
# Of Prometheus itself.
ADDED = {"instance", "job", "le"}
METRICS = {"metrics": "0"}


def targets() -> list[dict[str, Any]]:
    return [target for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]


def queries() -> list[str]:
    return [target["expr"] for target in targets()]


def rules() -> str:
    return (PROMETHEUS / "alerts.yml").read_text()


async def real_pages(certs: Certs) -> list[str]:
    """The pages of all programs, with all options that add metrics."""
    pages = []
    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        there = await enter(serving(echo))
        tunnel, _ = await enter(both_ends("mux", there.port, certs, **METRICS))
        pages.append((await get(tunnel.metrics_addresses[0])).decode())
        datagrams = await enter(both_ends("tls", there.port, certs, udp=True))
        ready = await enter(client_of("tls", port_of(tunnel), certs, preconnect=1))
        multi_user, _, port = await enter(
            one_user("wss", certs, **METRICS, **{"metrics-users": True})
        )
        await check_works(port)
        pages.append((await get(multi_user.metrics_addresses[0])).decode())
        server = await enter(server_for(certs))
        client = await enter(client_for(certs, port_of(server)))
        await check_echo(client, there.port)
        ends = await enter(gateway_and_agent(certs, metrics_per_group=True))
        pages += [service.metrics_page() for service in (*datagrams, ready, server, client, *ends)]
    return pages


async def labels_by_metric(certs: Certs) -> dict[str, set[str]]:
    """The labels of all metrics, as programs serve them."""
    found: dict[str, set[str]] = {}
    for page in await real_pages(certs):
        for sample in parse(page):
            name, _, labels = sample.partition("{")
            found.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
    return found


async def test_metrics_and_labels_of_queries_exist(certs: Certs) -> None:
    known = await labels_by_metric(certs)
    asked = [*queries(), *re.findall(r"expr: (?:\|\n)?((?:.*\n)+?) +(?:for|labels):", rules())]
    assert len(asked) > 50
    for query in asked:
        names = METRIC.findall(query)
        assert names or query.startswith("up{"), query
        assert [name for name in names if name not in known] == [], query
        labels = {
            label.strip() for found in re.findall(r"by \(([^)]+)\)", query)
            for label in found.split(",")
        } | set(re.findall(r"(\w+)=~?\"", query))  # fmt: skip
        assert labels - ADDED <= set().union(*(known[name] for name in names)), query


async def test_promtool_accepts_all_pages(certs: Certs) -> None:
    for page in await real_pages(certs):
        check_with_promtool(page.encode())


def test_panels_have_title_position_and_data_source() -> None:
    source = {"type": "prometheus", "uid": "${datasource}"}
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        assert panel["title"]
        place = panel["gridPos"]
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }
        assert not cells & taken
        assert place["x"] + place["w"] <= 24
        taken |= cells
    assert all(target["datasource"] == source for target in targets())
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)


def test_legends_have_labels_that_queries_keep() -> None:
    for target in targets():
        aggregated = re.findall(r"(?:sum|topk)\b.*? by \(([^)]+)\)", target["expr"])
        for label in re.findall(r"{{(\w+)}}", target["legendFormat"]):
            assert not aggregated or label in aggregated[0], target


def promtool(*argv: str | Path) -> None:
    done = subprocess.run(
        [require_program("promtool"), *argv], capture_output=True, text=True, timeout=20,
        check=False, cwd=PROMETHEUS,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_accepts_the_alerts() -> None:
    promtool("check", "rules", "alerts.yml")
    promtool("test", "rules", "alerts_test.yml")


def test_every_alert_is_tested() -> None:
    tested = (PROMETHEUS / "alerts_test.yml").read_text()
    names = re.findall(r"- alert: (\w+)", rules())
    assert len(names) > 5
    for name in names:
        fires = re.findall(rf"alertname: {name}\n +exp_alerts:\n +- exp_labels", tested)
        stays_quiet = f"alertname: {name}}}" in tested
        assert fires and stays_quiet, name


def test_promtool_accepts_the_queries_of_the_dashboard(tmp_path: Path) -> None:
    recorded = [
        {
            "record": f"query_{number}",
            "expr": query.replace("$__rate_interval", "5m").replace("$instance", ".*"),
        }
        for number, query in enumerate(queries())
    ]
    path = tmp_path / "queries.yml"
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": recorded}]}))
    promtool("check", "rules", path)


async def test_metrics_in_the_document_exist(certs: Certs) -> None:
    known = await labels_by_metric(certs)
    names = METRIC.findall((ROOT / "docs" / "monitoring.md").read_text())
    assert len(names) > 15
    assert [name for name in names if not any(each.startswith(name) for each in known)] == []


def test_document_has_the_job_name_of_the_alerts(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "monitoring.md").read_text()
    (yaml,) = re.findall(r"^```yaml\n(.*?)^```", text, re.M | re.S)
    (job,) = re.findall(r"job_name: (.*)", yaml)
    assert set(re.findall(r'job="([^"]*)"', rules())) == {job}
    (tmp_path / "alerts.yml").write_text(rules())
    path = tmp_path / "prometheus.yml"
    path.write_text(yaml)
    promtool("check", "config", path)


@pytest.mark.parametrize("option", ["instance", "datasource"])
def test_the_dashboard_asks_for(option: str) -> None:
    assert option in [each["name"] for each in DASHBOARD["templating"]["list"]]
