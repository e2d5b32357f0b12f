"""What all tests with real programs use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.real.destinations import Site
from tests.real.gateways import Network, network_in
from tests.support.certs import Certs


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """An HTTP server as the destination of tunnels."""
    with Site() as running:
        yield running


@pytest.fixture(scope="module")
def network(certs: Certs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """A web server behind an agent of AnyProxy's gateways."""
    with network_in(tmp_path_factory.mktemp("network"), certs) as running:
        yield running
