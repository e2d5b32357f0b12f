"""Files with a chain of certificates: their order, and expired certificates in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtt.trust.certificates import server_context
from mtt.trust.identity import Identity
from mtt.trust.tls_options import ServerTls
from tests.support.certs import Authority, pem
from tests.trust.handshakes import client_of, presented, shake


def chain_files(
    directory: Path, order: str, *, days: int = 1, issuer_days: int = 1
) -> tuple[str, str, str]:
    """CA, chain and key, the chain with root, intermediate and leaf in this `order` of "ril"."""
    root = Authority("root")
    middle = Authority("intermediate", issuer=root, days=issuer_days)
    leaf, key = middle.issue("some.name", days=days)
    parts = {"r": pem(root.certificate), "i": pem(middle.certificate), "l": leaf}
    contents = {"ca": parts["r"], "chain": b"".join(map(parts.__getitem__, order)), "key": key}
    for name, content in contents.items():
        Path(directory, name).touch(0o600)
        Path(directory, name).write_bytes(content)
    return str(directory / "ca"), str(directory / "chain"), str(directory / "key")


@pytest.mark.parametrize("order", ["l", "li", "lir", "ril", "il", "lri", "irl", "rli"])
def test_chain_in_the_wrong_order_works_with_a_warning(tmp_path: Path, order: str) -> None:
    ca, cert, key = chain_files(tmp_path, order)
    context, identity = server_context(ServerTls(cert=cert, key=key))
    assert presented(context).issuer.rfc4514_string() == "CN=intermediate"
    assert identity.words.names == ("some.name",)
    if "i" in order:
        shake(client_of(ca=ca), context, "some.name")
    if order in ("l", "li", "lir"):
        assert identity.words.warnings == ()
    else:
        (line,) = identity.words.warnings
        assert line.startswith(f"the certificates in {cert} are in the wrong order; put the ")


def test_a_cross_signed_root_is_in_order(tmp_path: Path) -> None:
    old, new = Authority("old"), Authority("new")
    builder = Authority("new", issuer=old)
    cert = tmp_path / "chain"
    leaf, _ = new.issue("some.name")
    cert.write_bytes(leaf + pem(builder.certificate) + pem(new.certificate))
    assert Identity(cert.read_bytes(), path=str(cert)).words.warnings == ()


@pytest.mark.parametrize(
    ("days", "issuer_days", "words"),
    [(-1, 1, "the certificate in {} expired on "), (1, -1, "certificate 2 in {} expired on ")],
)
def test_expired_certificates_cause_a_warning(
    tmp_path: Path, days: int, issuer_days: int, words: str
) -> None:
    _, cert, key = chain_files(tmp_path, "lir", days=days, issuer_days=issuer_days)
    _, identity = server_context(ServerTls(cert=cert, key=key))
    (line,) = identity.words.warnings
    assert line.startswith(words.format(cert))
    assert line.endswith("renew it")
