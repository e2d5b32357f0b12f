"""Expiry of certificates, as a metric."""

from __future__ import annotations

import contextlib
from pathlib import Path

from mtt.observe.certificates import NAME, certificate_lines
from mtt.observe.sums import Page, total
from mtt.trust.identity import Identity
from mtt.trust.reload import server_tls
from mtt.trust.tls_options import ServerTls
from tests.engine.scraping import METRICS, address
from tests.support.certs import Certs
from tests.support.metrics import check_with_promtool, get, parse
from tests.support.tunnels import client_of, port_of, server_at


def test_ports_with_the_same_certificate_have_one_line(certs: Certs) -> None:
    files = server_tls(ServerTls(cert=certs.cert, key=certs.key))
    other = server_tls(ServerTls(cert=certs.other_cert, key=certs.other_key))
    text = certificate_lines((files, files, other))
    assert parse(text) == {
        f'{NAME}{{file="{path}"}}': not_after(path)
        for path in (certs.cert, certs.other_cert)
    }
    check_with_promtool(text.encode())


def test_a_certificate_in_memory_has_no_file() -> None:
    (name,) = parse(certificate_lines((server_tls(ServerTls()),)))
    assert name == NAME


def test_no_certificates_no_metric() -> None:
    assert certificate_lines(()) == ""


def test_workers_report_the_earliest_expiry() -> None:
    pages = [Page(f"# HELP {NAME} x\n# TYPE {NAME} gauge\n{NAME} {at}\n") for at in (7, 5, 6)]
    assert parse(str(total(pages)))[NAME] == 5
    gone = pages[1].lasting()
    assert parse(str(total([gone, pages[0], pages[2]])))[NAME] == 6


async def test_both_ends_show_their_own(certs: Certs) -> None:
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(server_at("tls", 1, certs, **METRICS))
        client = await stack.enter_async_context(
            client_of("tls", port_of(server), certs, **METRICS)
        )
        of_client = {"cert": certs.other_cert, "key": certs.other_key}
        owner = await stack.enter_async_context(
            client_of("tls", port_of(server), certs, **METRICS, **of_client)
        )
        page = await get(address(server))
        expiry = not_after(certs.cert)
        assert parse(page.decode())[f'{NAME}{{file="{certs.cert}"}}'] == expiry
        check_with_promtool(page)
        assert NAME.encode() not in await get(address(client))
        expiry = not_after(certs.other_cert)
        page = await get(address(owner))
        assert parse(page.decode())[f'{NAME}{{file="{certs.other_cert}"}}'] == expiry


def not_after(path: str) -> float:
    expiry = Identity(Path(path).read_bytes()).words.not_after
    assert expiry is not None
    return expiry
