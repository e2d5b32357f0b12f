"""The options of both ends for certificates, authorities and versions."""

from __future__ import annotations

import pytest

from mtt.errors import UsageError
from mtt.options.flags import parse_args
from mtt.options.tunnel import CLIENT_FLAGS, SERVER_FLAGS, client_options, server_options
from mtt.trust.tls_options import ServerTls
from mtt.wire import alpn
from mtt_mu_server.options import FLAGS as MU_FLAGS
from mtt_mu_server.options import options as mu_options

CLIENT = ("-b", "127.0.0.1:0", "-s", "example.com:443")
SERVER = ("-b", "127.0.0.1:0", "-d", "127.0.0.1:1")
MU_SERVER = ("-b", "127.0.0.1:0", "-c", "127.0.0.1:0")


def test_options_of_both_ends() -> None:
    client = client_options(
        parse_args(CLIENT_FLAGS, [*CLIENT, "-cert", "c", "-key", "k", "-tls-min", "1.3"])
    )
    assert (client.tls.cert, client.tls.key, client.tls.tls_min) == ("c", "k", "1.3")
    server = server_options(
        parse_args(SERVER_FLAGS, [*SERVER, "-cert-dir", "d", "-client-ca", "ca"])
    )
    assert server.tls == ServerTls(cert_dir="d", client_ca="ca", tls_min="1.2")
    many = mu_options(parse_args(MU_FLAGS, [*MU_SERVER, "-cert-dir", "d", "-client-ca", "ca"]))
    assert many.tls == ServerTls(cert_dir="d", client_ca="ca", tls_min="1.2", alpn=alpn.SITE)


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        ("-cert-dir d -cert c -key k", "-cert-dir is for a self-signed certificate; drop it"),
        ("-client-ca ca -disable-tls", "-client-ca needs TLS, which -disable-tls turns off"),
        ("-tls-min 1.1", "-tls-min: '1.1' is not one of 1.2, 1.3"),
    ],
)
def test_invalid_server_options(argv: str, reason: str) -> None:
    with pytest.raises(UsageError, match=f"^{reason}"):
        server_options(parse_args(SERVER_FLAGS, [*SERVER, *argv.split()]))
    with pytest.raises(UsageError, match=f"^{reason}"):
        mu_options(parse_args(MU_FLAGS, [*MU_SERVER, *argv.split()]))


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        ("-cert c", "-cert needs -key; give both, or neither to go without"),
        ("-key k", "-key needs -cert;"),
        ("-tls-min TLS1.3", "-tls-min: 'TLS1.3' is not one of 1.2, 1.3"),
    ],
)
def test_invalid_client_options(argv: str, reason: str) -> None:
    with pytest.raises(UsageError, match=f"^{reason}"):
        client_options(parse_args(CLIENT_FLAGS, [*CLIENT, *argv.split()]))
