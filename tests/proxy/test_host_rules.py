"""Rules of an agent for its targets, in the Go program's syntax."""

import json
import random
import re
import time
from pathlib import Path

import pytest

from mtt.address import is_ip
from mtt.errors import UsageError
from mtt.proxy.host_rules import ALLOW_ALL, HostRules, parse_patterns

GO = json.loads(
    (Path(__file__).parents[1] / "vectors" / "p-anyproxy-host-patterns.json").read_text()
)
# What a name of the recorded addresses leads to.
ELSEWHERE = "203.0.113.9"


def allowing(*patterns):
    return HostRules(allowed=parse_patterns("allowed_hosts", patterns, allow=True))


def forbidding(*patterns):
    return HostRules(forbidden=parse_patterns("forbidden_hosts", patterns, allow=False))


@pytest.mark.parametrize(
    "pattern, matched, others",
    [
        ("10.0.0.0/8", ["10.1.2.3:22", "::ffff:10.1.2.3:22"], ["11.0.0.1:22"]),
        ("10.0.0.0/8:22", ["10.1.2.3:22"], ["10.1.2.3:23"]),
        ("10.0.0.0/8:*", ["10.1.2.3:23"], ["11.0.0.1:23"]),
        ("10.1.2.3/8", ["10.200.0.1:1"], []),
        ("fe80::/10", ["fe80::1:80", "fe80::1%2:80"], ["fec0::1:80"]),
        ("[2001:db8::/32]:80", ["2001:db8::1:80"], ["2001:db8::1:81"]),
        ("*", ["a:1", "192.0.2.1:2", "::1:3"], []),
        (".*", ["a:1", "192.0.2.1:2", "::1:3"], []),
        (".*:22", ["a:22", "::1:22"], ["a:23"]),
        (".*.example.com", ["www.example.com:1"], ["www.example.net:1"]),
        (".example.com", ["www.example.com:1"], ["example.com:1", "xexample.com:1"]),
        (".example.com:80", ["www.example.com:80"], ["www.example.com:81"]),
        ("*:22", ["a:22", "::1:22"], ["a:23"]),
        ("*:*", ["a:22"], []),
        ("nas:*", ["nas:22", "NAS.:80"], ["xnas:22", "nas.example:22"]),
        ("*.example.com", ["www.example.com:1", "a.b.example.com:2"], ["example.com:1"]),
        ("*.Example.com:443", ["WWW.example.COM:443"], ["www.example.com:80"]),
        ("ex*.com:80", ["example.com:80", "exx.com:80"], ["example.com.net:80"]),
        ("10.1.*:80", ["10.1.2.3:80"], ["10.10.2.3:80", "10.1.2.3:81"]),
        ("example.com", ["example.com:1", "EXAMPLE.com:2"], ["examplexcom:1", "www.example.com:1"]),
        ("127.0.0.1", ["127.0.0.1:80"], ["1127.0.0.10:80"]),
        ("::1", ["::1:80"], ["::2:80"]),
        ("[::1]:80", ["::1:80", "0:0::1:80"], ["::1:81"]),
        ("localhost:22", ["LocalHost:22"], ["localhost:2222", "mylocalhost:22"]),
        (r"^db[0-9]+\.example\.com$", ["db7.example.com:5432"], ["xdb7.example.com:1"]),
        (r"^db[0-9]+:5432$", ["db7:5432"], ["db7:5433"]),
        (r".*\.trusted\.com:.*", ["x.trusted.com:443"], ["xtrusted.com:443"]),
        (r"^a$|^b$", ["a:1", "b:2"], ["ab:1"]),
    ],
)
def test_pattern_matches_as_a_whole(pattern, matched, others):
    for allows, addresses in ((True, matched), (False, others)):
        for text in addresses:
            host, port = text.rsplit(":", 1)
            address = host if is_ip(host) else ELSEWHERE
            assert allowing(pattern).allows(host, address, int(port)) is allows, text
            assert forbidding(pattern).allows(host, address, int(port)) is not allows, text


def test_globs_agree_with_regular_expressions():
    choose = random.Random(7)
    for _ in range(3000):
        glob = "".join(choose.choices("ab*", k=choose.randint(1, 6)))
        host = "".join(choose.choices("ab", k=choose.randint(1, 7)))
        if "*" in glob:
            expected = re.fullmatch(glob.replace("*", ".*"), host) is not None
            assert allowing(glob).allows(host, ELSEWHERE, 80) is expected, (glob, host)


def test_globs_take_linear_time():
    rules = allowing("*" + "a*" * 60 + "b")
    began = time.process_time()
    assert not rules.allows("a" * 250, ELSEWHERE, 80)
    assert time.process_time() - began < 1  # with a regular expression: years


@pytest.mark.parametrize(
    "pattern, reason",
    [
        ("", "empty"),
        ("10.0.0.0/33", "not a range of IP addresses"),
        ("10.0.0.0/8:abc", "'abc' is not a port number"),
        ("a/b", "not a range of IP addresses"),
        ("example.com:99999", "is not a port number"),
        ("a:b:c", "write an IPv6 address with a port like [2001:db8::1]:22"),
        ("(bad", "not a regular expression"),
        ("*.", "not a regular expression"),
        ("[::1]:x", "is not a port number"),
    ],
)
def test_malformed_pattern_is_an_error_that_names_it(pattern, reason):
    with pytest.raises(UsageError) as caught:
        allowing(pattern)
    assert str(caught.value).startswith(f"allowed_hosts: {pattern!r}: ".replace('"', "'"))
    assert reason in str(caught.value)


def test_number_of_patterns_is_limited():
    with pytest.raises(UsageError, match="1001 patterns are too many; 1000 at most"):
        allowing(*(f"host{number}" for number in range(1001)))


def test_without_patterns_everything_is_allowed():
    assert ALLOW_ALL.allows("anything", "127.0.0.1", 22)
    assert not ALLOW_ALL.warnings


def test_forbidden_patterns_outrank_allowed_ones():
    rules = HostRules(
        parse_patterns("allowed_hosts", ["10.0.0.0/8", "nas"], allow=True),
        parse_patterns("forbidden_hosts", ["10.0.0.1"], allow=False),
    )
    assert rules.verdict("10.0.0.2", "10.0.0.2", 80) == (True, "10.0.0.0/8")
    assert rules.verdict("10.0.0.1", "10.0.0.1", 80) == (False, "10.0.0.1")
    assert rules.verdict("8.8.8.8", "8.8.8.8", 80) == (False, "")
    assert rules.verdict("nas", "192.168.0.5", 445) == (True, "nas")
    # The name is allowed, the address that it leads to is not.
    assert rules.verdict("nas", "10.0.0.1", 445) == (False, "10.0.0.1")


def test_name_that_leads_to_a_forbidden_address_is_denied():
    rules = forbidding("127.0.0.0/8", "::1")
    assert not rules.allows("rebind.example", "127.0.0.1", 80)
    assert not rules.allows("rebind.example", "::ffff:127.0.0.1", 80)
    assert not rules.allows("localhost", "::1", 80)
    assert rules.allows("www.example", "203.0.113.1", 80)


@pytest.mark.parametrize(
    "allow, pattern, better",
    [
        (True, r"10\..*", r"'^10\\..*$'"),
        (True, r"^10\.", r"'^10\\.$'"),
        (False, r"secret[0-9]", "'^secret[0-9]$'"),
        (False, "example.com", "'*.example.com'"),
    ],
)
def test_pattern_that_may_be_misread_is_a_warning(allow, pattern, better):
    (warning,) = (allowing if allow else forbidding)(pattern).warnings
    assert better.replace("\\\\", "\\") in warning.replace("\\\\", "\\")
    assert warning.startswith("allowed_hosts: " if allow else "forbidden_hosts: ")


@pytest.mark.parametrize(
    "pattern",
    ["10.0.0.0/8", "*.example.com", "nas", "^a$", "192.0.2.1", ".*", r".*\.com:.*", r"^a\\$"],
)
def test_pattern_that_is_clear_is_no_warning(pattern):
    assert not allowing(pattern).warnings


def test_unanchored_expressions_err_on_the_side_of_caution():
    assert not forbidding("secret[0-9]").allows("xsecret1.example", ELSEWHERE, 80)
    assert not allowing("secret[0-9]").allows("xsecret1.example", ELSEWHERE, 80)
    assert allowing("secret[0-9]").allows("secret1", ELSEWHERE, 80)


@pytest.mark.parametrize("row", GO["rows"], ids=lambda row: row["pattern"])
def test_nothing_is_allowed_that_go_denies(row):
    """As a list of allowed hosts, every pattern allows at most what it allows in Go."""
    # What Go cannot express, or takes for something else: an address, `*.example.com`.
    differs = ("", "::1", "[::1]:80", "*.example.com", "*:*:80", "EXAMPLE.com:80")
    if "error" in row or row["pattern"] in differs:
        return
    rules = allowing(row["pattern"])
    for text in GO["addresses"]:
        host, _, port = text.rpartition(":")
        if not port.isdigit() or (":" in host and host[:1] != "["):
            continue  # no host and port
        host = host.strip("[]")
        allowed = rules.allows(host, host if is_ip(host) else ELSEWHERE, int(port))
        in_go = {match.lower() for match in row["matches"]}
        assert not allowed or text.lower() in in_go, text


@pytest.mark.parametrize(
    "pattern, address",
    [
        ("127.0.0.0/8", "0.0.0.0"),
        ("127.0.0.1", "::ffff:0.0.0.0"),
        ("127.*", "0.0.0.0"),
        (r"^127\.", "0.0.0.0"),
        ("0.0.0.0", "0.0.0.0"),
        ("::1", "::"),
        ("::/128", "::"),
        ("10.0.0.0/8", "64:ff9b::10.1.2.3"),
        ("10.1.2.3:80", "64:ff9b::a01:203"),
        ("64:ff9b::/96", "64:ff9b::a01:203"),
        ("10.0.0.0/8", "2002:a01:203::1"),
        ("10.0.0.0/8", "::ffff:a01:203"),
    ],
)
def test_forbidden_address_in_another_form_is_denied(pattern, address):
    for host in (address, "rebound.test"):
        assert not forbidding(pattern).allows(host, address, 80)


@pytest.mark.parametrize(
    "pattern, address",
    [("127.0.0.0/8", "0.0.0.0"), ("::1", "::"), ("10.0.0.0/8", "64:ff9b::a01:203")],
)
def test_allowed_address_is_the_one_that_is_dialled(pattern, address):
    assert not allowing(pattern).allows(address, address, 80)


@pytest.mark.parametrize(
    "pattern, host",
    [
        ("evil.test", "\uff45vil.test"),  # full-width e
        ("evil.test", "evil\u3002test"),  # ideographic full stop
        ("evil.test", "e\u00advil.test."),  # soft hyphen
        ("*.evil.test", "a.\uff25VIL.test\u3002"),
        (r"^evil\.test$", "ev\uff49l.test"),
        ("b\u00fccher.test", "XN--BCHER-KVA.test"),
        ("xn--bcher-kva.test", "B\u00dcCHER.test"),
    ],
)
def test_forbidden_name_in_another_spelling_is_denied(pattern, host):
    assert not forbidding(pattern).allows(host, ELSEWHERE, 80)
    assert allowing(pattern).allows(host, ELSEWHERE, 80)


def test_unresolvable_name_has_one_spelling():
    assert forbidding("evil.test").allows("\u00fc" * 70, ELSEWHERE, 80)


@pytest.mark.parametrize(
    "pattern",
    [
        "10.1.*", "10.1.*:80", "1*", r"^10\.1\..*$", r"10\.1\..+:80", r"10\.1\.\S+(:80)?",
        r"[0-9]+\..*",
    ],
)
def test_allowed_pattern_of_digits_matches_addresses_alone(pattern):
    rules = allowing(pattern)
    assert rules.allows("10.1.2.3", "10.1.2.3", 80)
    assert rules.allows("printer.test", "10.1.2.3", 80)
    assert not rules.allows("10.1.evil.test", "::1", 80)
    assert not forbidding(pattern).allows("10.1.evil.test", ELSEWHERE, 80)


@pytest.mark.parametrize("pattern", ["*:80", r".*:80", r"^[^.]+:80$", r".*:(80|443)", r"^.+$"])
def test_pattern_with_digits_only_in_its_port_matches_names(pattern):
    assert allowing(pattern).allows("printer", "10.1.2.3", 80)
