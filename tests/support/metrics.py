"""Reading metrics: strictly, as Prometheus' text format 0.0.4 has it."""

from __future__ import annotations

import asyncio
import re
import subprocess
from typing import Any

from mtt.tunnels.service import Service
from mtt.wire.http1 import parse_response
from tests.support.programs import require_program

_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\[\\"n])*"'
_HEADER = re.compile(rf"# HELP ({_NAME}) [^\n]+\n# TYPE ({_NAME}) (counter|gauge|histogram)\n")
_SAMPLE = re.compile(rf"({_NAME})(?:\{{({_LABEL}(?:,{_LABEL})*)\}})? ([0-9.e+-]+)\n")


def parse(page: str) -> dict[str, float]:
    """The samples of a page, by name and labels as written; fails if anything is out of order."""
    found: dict[str, float] = {}
    seen: set[str] = set()
    at = 0
    while at < len(page):
        header = _HEADER.match(page, at)
        assert header is not None, f"no header: {page[at : at + 100]!r}"
        name, at = header[1], header.end()
        assert name == header[2]
        assert name not in seen, f"{name} comes twice"
        assert name.endswith("_total") == (header[3] == "counter"), name
        seen.add(name)
        ends = ("_bucket", "_sum", "_count") if header[3] == "histogram" else ("",)
        while sample := _SAMPLE.match(page, at):
            at = sample.end()
            assert sample[1] in [name + end for end in ends], f"{sample[0]!r} under {name}"
            key = f"{sample[1]}{{{sample[2]}}}" if sample[2] else sample[1]
            assert key not in found, f"{key} comes twice"
            found[key] = float(sample[3])
    _parse_with_prometheus(page, found)
    return found


def _parse_with_prometheus(page: str, found: dict[str, float]) -> None:
    """Have the parser of the package prometheus_client find the same, where it is installed."""
    try:
        from prometheus_client import parser
    except ImportError:
        return
    families: Any = parser.text_string_to_metric_families(page)
    samples = [sample for family in families for sample in family.samples]
    assert len(samples) == len(found)
    assert sum(sample.value for sample in samples) == sum(found.values())


def check_with_promtool(page: bytes) -> None:
    """Let promtool, if it is installed, look for errors and bad style."""
    done = subprocess.run(
        [require_program("promtool"), "check", "metrics"],
        input=page, capture_output=True, timeout=20, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


async def ask(address: str, request: str) -> tuple[int, bytes, str]:
    """Status, body and content type of the answer to the head of a `request`."""
    if address.startswith("/"):
        reader, writer = await asyncio.open_unix_connection(address)
    else:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(f"{request}\r\nConnection: close\r\n\r\n".encode("latin-1"))
        head, end, body = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.close()
        await writer.wait_closed()
    response = parse_response(head + end)
    return response.status, body, response.first("content-type") or ""


async def get(address: str, path: str = "/metrics") -> bytes:
    """The body of a page there must be."""
    status, body, _ = await ask(address, f"GET {path} HTTP/1.1\r\nHost: localhost")
    assert status == 200, body
    return body


async def scrape(address: str) -> dict[str, float]:
    """The samples at an address, which prefix `mtt_` is taken off."""
    return short(parse((await get(address)).decode()))


def numbers(service: Service) -> dict[str, float]:
    """The samples of a service of this process, without the prefix `mtt_`."""
    return short(parse(service.metrics_page()))


def short(samples: dict[str, float]) -> dict[str, float]:
    return {name.removeprefix("mtt_"): value for name, value in samples.items()}


def failures(samples: dict[str, float]) -> dict[str, float]:
    """How many handshakes failed, by cause, where any did."""
    found = re.compile(r'handshake_failures_total\{cause="(.*)"\}')
    return {
        match[1]: value
        for name, value in samples.items()
        if value and (match := found.fullmatch(name))
    }
