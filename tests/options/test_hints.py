"""Options of other programs, and misspelt ones: what the error proposes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import pytest

from anyproxy.config import FLAGS as ANYPROXY
from anytls.options import CLIENT_FLAGS as ANYTLS_CLIENT
from anytls.options import SERVER_FLAGS as ANYTLS_SERVER
from mtt.errors import UsageError
from mtt.options import hints
from mtt.options.flags import Flag, parse_args
from mtt.options.tunnel import CLIENT_FLAGS, SERVER_FLAGS
from mtt_mu_server.options import FLAGS as MULTI_USER
from plugin.options import parse_options

COMMANDS = {
    "client": CLIENT_FLAGS,
    "server": SERVER_FLAGS,
    "mu": MULTI_USER,
    "anytls-client": ANYTLS_CLIENT,
    "anytls-server": ANYTLS_SERVER,
    "anyproxy": ANYPROXY,
}
SAFE = "so anyone on the path can read the data; use "


def error(parse: Callable[[], object]) -> str:
    with pytest.raises(UsageError) as caught:
        parse()
    return str(caught.value)


@pytest.mark.parametrize(
    ("command", "argv", "advice"),
    [
        ("client", "-v", "did you mean -verbose or -version?"),
        ("server", "-v", "did you mean -verbose or -version?"),
        ("anytls-client", "-v", "did you mean -verbose or -version?"),
        ("mu", "-v", "did you mean -verbose or -version?"),
        ("client", "-debug", "did you mean -verbose?"),
        ("client", "-WSS", "did you mean -wss?"),
        ("client", "-wss_path /x", "did you mean -wss-path?"),
        ("client", "-tls", "TLS is the default; remove it"),
        ("client", "-host a", "write -n NAME"),
        ("client", "-http-proxy a:1", "write -proxy SCHEME://[USER:PASSWORD@]HOST:PORT|env"),
        ("client", "-sni=a", "write -n NAME"),
        ("server", "-host a", "the server accepts any name; remove it"),
        ("client", "-mode websocket", "write -wss"),
        ("client", "-mode=quic", "not supported; use -wss to pass web servers and CDNs"),
        ("client", "-insecure", f"-sv skips verification, {SAFE}-pin sha256/BASE64 or -ca FILE "
         "instead"),
        ("anytls-client", "-noverify", f"-sv skips verification, {SAFE}-pin sha256/BASE64 or "
         "-ca FILE instead"),
        ("server", "-insecure", "only clients verify; remove it"),
        ("client", "-disable-tls", "only servers can run without TLS; remove it"),
        ("client", "-server", "this is the client; run mtt-server or anytls-server"),
        ("client", "-server a:1", "write -s HOST:PORT"),
        ("client", "-d a:1", "write -s HOST:PORT"),
        ("server", "-s", "this is the server; remove it"),
        ("server", "-preconnect 1", "the client decides; remove it"),
        ("client", "-l :1", "write -b HOST:PORT"),
        ("anytls-client", "-bind :1", "write -b HOST:PORT"),
        ("anytls-client", "-wss", "not supported; remove it"),
        ("mu", "-wss", "WebSocket is always on; remove it"),
        ("mu", "-wss-path /s3cret", "each user has a path, set through the controller (-c); "
         "remove it"),
        ("client", "-log-file x", "log lines go to stderr; remove it"),
        ("client", "-mode=mtls", "TLS is the default; write -mux"),
        ("anytls-client", "-obfs x", "there is only one mode; remove it"),
        ("client", "-serviceName x", "gRPC is not supported; use -wss to pass web servers and "
         "CDNs"),
        ("client", "-verify", "certificates are verified by default; remove it"),
        ("client", "-certfile c", "write -cert FILE"),
        ("client", "-keyfile k", "write -key FILE"),
        ("server", "-gencert", "without -cert FILE the server generates a certificate; remove it"),
        ("client", "-psk s3cret", "write -anytls and -password-file FILE"),
        ("anytls-client", "-psk s3cret", "write -password-file FILE"),
        ("client", "-padding x", "padding comes with -anytls"),
        ("client", "-concurrency 8", "write -mux and -mux-max-stream N"),
        ("client", "-t 5m", "write -timeout DURATION"),
        ("client", "-tfo", "write -fast-open"),
        ("client", "-nodelay", "always on; remove it"),
        ("client", "-fwmark 1", "not supported; the system's routing decides"),
        ("server", "-cpu 4", "write -workers N"),
        ("anytls-client", "-conf f", "write -config FILE"),
        ("mu", "-dst a:1", "each user has a destination, set through the controller (-c); remove "
         "it"),
        ("mu", "-controller a:1", "write -c HOST:PORT"),
        ("server", "-remote a:1", "write -d HOST:PORT"),
        ("anyproxy", "-c f", "write -config FILE"),
        ("anyproxy", "-test", "write -check"),
        ("anyproxy", "-workers 4", "the command has one process; remove it"),
        ("anyproxy", "-tls", "set it in the file of -config FILE instead"),
        ("anyproxy", "-conf f", "write -config FILE"),
        ("anyproxy", "-configs f", "did you mean -config?"),
        ("client", "-SV", "did you mean -s?"),
        ("anytls-client", "-Insecure", f"-sv skips verification, {SAFE}-pin sha256/BASE64 or "
         "-ca FILE instead"),
        ("client", "-c x", "write -config FILE"),
        ("server", "-validate", "write -check"),
        ("client", "-x1", "-h lists all options"),  # and not -s, as for any two letters
        ("client", "-z", "-h lists all options"),
    ],
)  # fmt: skip
def test_command_line_hints(command: str, argv: str, advice: str) -> None:
    text = error(lambda: parse_args(COMMANDS[command], argv.split()))
    name = re.split("[ =]", argv)[0]
    assert text == f"{name} is not an option; {advice}"


@pytest.mark.parametrize(
    ("flags", "options", "advice"),
    [
        # v2ray-plugin, xray-plugin
        (CLIENT_FLAGS, "tls;host=a;path=/b", "tls is not an option; TLS is the default"),
        (CLIENT_FLAGS, "host=cdn.example", "host is not an option; write n=NAME"),
        (CLIENT_FLAGS, "path=/s3cret", "path is not an option; write wss and wss-path=PATH"),
        (CLIENT_FLAGS, "mode=websocket", "mode is not an option; write wss"),
        (CLIENT_FLAGS, "mode=quic", "not supported; use wss to pass"),
        (CLIENT_FLAGS, "mode=s3cret", "TLS alone is the default; wss, mux and anytls"),
        (CLIENT_FLAGS, "loglevel=none", "loglevel is not an option; write log-level=error|"),
        (CLIENT_FLAGS, "certRaw=s3cret", "certRaw is not an option; write ca=FILE"),
        (SERVER_FLAGS, "server;tls", "server is not an option; this is the server"),
        (CLIENT_FLAGS, "mux=8", "'8' is not a boolean; write true or false"),
        (CLIENT_FLAGS, "mux=8", "mux-max-stream is the number of connections"),
        # simple-tls, gost-plugin
        (CLIENT_FLAGS, "no-verify", f"sv skips verification, {SAFE}pin=sha256/BASE64 or ca=FILE"),
        (CLIENT_FLAGS, "skip-verify=true", f"sv skips verification, {SAFE}"),
        (CLIENT_FLAGS, "insecure", f"sv skips verification, {SAFE}"),
        (CLIENT_FLAGS, "sni=a", "write n=NAME"),
        (CLIENT_FLAGS, "serverName=a", "write n=NAME"),
        (CLIENT_FLAGS, "cert-hash=s3cret", "write pin=sha256/BASE64"),
        (CLIENT_FLAGS, "mode=mwss", "write wss and mux"),
        (CLIENT_FLAGS, "v", "did you mean verbose?"),
        (SERVER_FLAGS, "s;key=/k", "this is the server; remove it"),
        # simple-obfs, Cloak, kcptun
        (CLIENT_FLAGS, "obfs=tls", "TLS is the default"),
        (CLIENT_FLAGS, "obfs-host=a", "write n=NAME"),
        (CLIENT_FLAGS, "UID=s3cret", "an option of Cloak"),
        (CLIENT_FLAGS, "ServerName=a", "write n=NAME"),
        (CLIENT_FLAGS, "crypt=aes", "an option of kcptun"),
    ],
)
def test_plugin_option_hints(flags: Sequence[Flag], options: str, advice: str) -> None:
    text = error(lambda: parse_options(flags, options))
    assert text.startswith("plugin option ")
    assert advice in text
    assert "s3cret" not in text


@pytest.mark.parametrize("command", COMMANDS)
def test_no_suggestion_weakens_security(command: str) -> None:
    """Whatever is misspelt: by one letter more, less, or other."""
    flags = COMMANDS[command]
    weak = [flag.name for flag in flags if flag.weakens]
    letters = "eisv-"
    known = {flag.name for flag in flags}
    for name in (*weak, "v", "s", "vs", "skip"):
        for at in range(len(name) + 1):
            for wrong in (
                name[:at] + name[at + 1 :],
                *(name[:at] + letter + name[at:] for letter in letters),
                *(name[:at] + letter + name[at + 1 :] for letter in letters),
            ):
                if wrong in known or not wrong.strip("-") or wrong.startswith("-"):
                    continue
                text = error(lambda wrong=wrong: parse_args(flags, [f"-{wrong}=x"]))  # type: ignore[misc]
                found = re.search(r"did you mean -([\w-]+)", text)
                assert found is None or found[1] not in weak, (wrong, text)


def test_weakening_options_are_marked() -> None:
    marked = {flag.name for flags in COMMANDS.values() for flag in flags if flag.weakens}
    assert marked == {"sv", "disable-tls", "ignore-fingerprint", "allow"}


def test_hints_name_options_that_exist() -> None:
    names = {flag.name for flags in COMMANDS.values() for flag in flags}
    tables = (
        hints._HINTS, hints._CLIENT_HINTS, hints._SERVER_HINTS, hints._MULTI_USER_HINTS
    )  # fmt: skip
    for words, text in (entry for table in tables for entry in table):
        assert set(hints._FIELD.findall(text)) <= names, text
        for word in words.split():
            assert word == word.lower() and not set(word) & set("-_ "), word
