"""The documents tell the truth: options, messages, links and paths in them exist."""

from __future__ import annotations

import ast
import importlib
import itertools
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from anyproxy.config import FLAGS as ANYPROXY
from anytls.options import CLIENT_FLAGS as ANYTLS_CLIENT
from anytls.options import SERVER_FLAGS as ANYTLS_SERVER
from mtt.errors import Cause
from mtt.modes import MODES
from mtt.options.flags import Flag, parse_args
from mtt.options.tunnel import CLIENT_FLAGS, SERVER_FLAGS
from mtt_mu_server.options import FLAGS as MULTI_USER
from plugin.options import parse_options
from tests.test_imports import ENGINE, FILES, RUNTIME, room

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
OPTION = re.compile(r"`-([A-Za-z][\w-]*)[^`]*`")
LINK = re.compile(r"\]\(([^)\s]+)\)|^\[[^\]]+\]: (\S+)$", re.M)
COMMAND = re.compile(r"^ *((?:mtt|anytls|anyproxy)-[\w-]+ -(?:.*\\\n)*.*)$", re.M)
INLINE = re.compile(r"`((?:mtt|anytls|anyproxy)-[a-z-]+\s-[a-z][^`]*)`")
FLAGS = {
    "mtt-client": CLIENT_FLAGS,
    "mtt-server": SERVER_FLAGS,
    "mtt-mu-server": MULTI_USER,
    "anytls-client": ANYTLS_CLIENT,
    "anytls-server": ANYTLS_SERVER,
    "anyproxy-client": ANYPROXY,
    "anyproxy-gateway": ANYPROXY,
}
FENCED = re.compile(r"^```.*?^```$", re.M | re.S)

# In the table of messages, but not ours: what OpenSSL, the system and shadowsocks say.
FOREIGN = {
    "self-signed certificate", "unable to get local issuer certificate", "Hostname mismatch",
    "IP address mismatch",
    "tlsv1 alert unknown ca", "peer did not return a certificate", "http request",
    "wrong version number", "tlsv1 alert protocol version", "unsupported protocol",
    "address already in use", "connection refused", "SIGKILL", "plugin service exit unexpectedly",
}  # fmt: skip


def read(name: str) -> str:
    return (ROOT / name).read_text()


def section(text: str, heading: str) -> str:
    """What stands below a heading, up to the next one of its level or above."""
    level = heading.count("#")
    rest = text.split(f"\n{heading}\n", 1)[1]
    return re.split(rf"\n#{{1,{level}}} ", rest)[0]


def table(text: str) -> dict[str, tuple[bool, bool]]:
    """The options in the first table of `text`: whether client and server have them."""
    found = {}
    for line in text.splitlines():
        if line.startswith("| `-"):
            cells = [cell.strip() for cell in line.replace("\\|", "").split("|")]
            for name in OPTION.findall(cells[1]):
                found[name] = (cells[2] == "yes", cells[3] == "yes")
    return found


def names(flags: Sequence[Flag]) -> set[str]:
    return {flag.name for flag in flags}


def of(found: dict[str, tuple[bool, bool]], end: int) -> set[str]:
    return {name for name, ends in found.items() if ends[end]}


def test_options_of_the_tunnel_are_in_the_table() -> None:
    found = table(section(read("docs/options.md"), "## mtt-client and mtt-server"))
    assert of(found, 0) == names(CLIENT_FLAGS)
    assert of(found, 1) == names(SERVER_FLAGS)


def test_options_of_the_multi_user_server_are_listed() -> None:
    text = section(read("docs/options.md"), "## mtt-mu-server")
    sentence = re.search(r"It also has (.*?)\s+of mtt-server\.\n", text, re.S)
    assert sentence is not None
    shared = set(OPTION.findall(sentence[1]))
    assert shared <= names(SERVER_FLAGS)
    assert set(table(text)) | shared == names(MULTI_USER)


def test_options_of_anytls_are_in_the_table() -> None:
    text = section(read("docs/options.md"), "## anytls-client and anytls-server")
    found = table(text)
    sentence = re.search(r"both have (.*?) of the tunnel,\s+and the\s+server (.*?)\.\n", text, re.S)
    assert sentence is not None
    both, server = (set(OPTION.findall(part)) for part in sentence.groups())
    tunnel = {"version", "h"}  # of every command
    assert of(found, 0) | both | tunnel == names(ANYTLS_CLIENT)
    assert of(found, 1) | both | server | tunnel == names(ANYTLS_SERVER)


def test_options_of_anyproxy_are_in_the_table() -> None:
    text = section(read("docs/options.md"), "## anyproxy-gateway and anyproxy-client")
    found = table(text)
    sentence = re.search(r"Both have (.*?) of the tunnel\.", text, re.S)
    assert sentence is not None
    both = set(OPTION.findall(sentence[1])) | {"version", "h"}
    assert of(found, 0) | both == of(found, 1) | both == names(ANYPROXY)


def test_other_names_of_options_are_listed() -> None:
    rows = re.findall(
        r"^\| `-([\w-]+)` \| (.*) \| (.*) \|$",
        section(read("docs/options.md"), "## Other names"), re.M,
    )  # fmt: skip
    found = {
        (command, name, alias)
        for name, others, where in rows
        for alias in OPTION.findall(others)
        for command in (FLAGS if where == "all" else where.split(", "))
    }
    assert found == {
        (command, flag.name, alias)
        for command, flags in FLAGS.items()
        for flag in flags
        for alias in flag.aliases
    }


def test_options_with_the_same_name_have_the_same_form() -> None:
    forms: dict[str, set[tuple[str, bool]]] = {}
    for flag in itertools.chain(*FLAGS.values()):
        for name in (flag.name, *flag.aliases):
            forms.setdefault(name, set()).add((flag.kind, flag.repeatable))
    assert [name for name, found in forms.items() if len(found) > 1] == []


@pytest.mark.parametrize("command", FLAGS)
def test_options_have_a_group(command: str) -> None:
    assert [flag.name for flag in FLAGS[command] if flag.group is None] == [], "see mtt Group"


def test_command_lines_in_documents_are_understood() -> None:
    texts = [document.read_text() for document in DOCUMENTS]
    lines = [line for text in texts for line in COMMAND.findall(text)]
    lines += [" ".join(line.split()) for text in texts for line in INLINE.findall(text)]
    assert len(lines) >= 20
    used = set()
    for line in lines:
        name, *arguments = shlex.split(line.replace("\\\n", " "), comments=True)
        assert parse_args(FLAGS[name], arguments), line
        used.add(name)
    assert used == set(FLAGS)


@pytest.mark.parametrize("document", ["README.md", "docs/shadowsocks.md"])
@pytest.mark.parametrize("plugin", ["mtt-client", "mtt-server"])
def test_plugin_options_in_documents_are_options(plugin: str, document: str) -> None:
    pattern = rf'"plugin": "[^"]*{plugin}",\s+"plugin_opts": "([^"]+)"'
    (text,) = re.findall(pattern, read(document))
    assert parse_options(CLIENT_FLAGS if plugin == "mtt-client" else SERVER_FLAGS, text)


def test_readme_lists_all_modes() -> None:
    (modes,) = re.findall(r"selects another mode \(([^)]+)\)", read("README.md"))
    assert modes.split(", ") == list(MODES)


def test_causes_of_failed_handshakes_are_explained() -> None:
    text = section(read("docs/monitoring.md"), "## Metrics")
    assert re.findall(r"^\| `([a-z_]+)` \| ", text, re.M) == ["cause", *Cause]


def test_messages_to_troubleshoot_are_in_the_source() -> None:
    texts = "\n".join(_texts())
    rows = re.findall(r"^\| (.*?) \| ", read("docs/troubleshooting.md"), re.M)
    messages = [message for row in rows for message in re.findall(r"`([^`]+)`", row)]
    parts = [
        part
        for message in messages
        if not re.fullmatch(r"-\w+", message)  # an option that brings the message up
        for part in map(str.strip, re.split(r"\.\.\.|[:;,()]|\b\d+\b", message))
        if len(part) > 2 and part not in FOREIGN
    ]
    assert len(parts) > 25
    assert [part for part in parts if not _is_made_of(part, texts)] == []


def _is_made_of(message: str, texts: str) -> bool:
    """Whether `message` is in the source, or two texts with a space between them are."""
    words = message.split()
    halves = [(" ".join(words[:i]), " ".join(words[i:])) for i in range(1, len(words))]
    return message in texts or any(
        left in texts and (right in texts or right in FOREIGN) for left, right in halves
    )


def _texts() -> Iterator[str]:
    """All texts in the source; what is put into an f-string is left out."""
    for package in ("mtt", "anytls", "anyproxy", "plugin", "mtt_mu_server"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    yield "".join(
                        str(part.value) if isinstance(part, ast.Constant) else "\n"
                        for part in node.values
                    )
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def test_readme_links_to_every_document() -> None:
    linked = {match[1] or match[2] for match in LINK.finditer(read("README.md"))}
    assert {f"docs/{path.name}" for path in DOCUMENTS[2:]} <= linked


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for match in LINK.finditer(FENCED.sub("", document.read_text())):
        path, _, anchor = (match[1] or match[2]).partition("#")
        if "://" in path:
            continue
        target = (document.parent / path).resolve() if path else document
        assert target.is_relative_to(ROOT), path
        assert target.is_file(), path
        if anchor:
            assert anchor in _anchors(target.read_text()), f"{path}#{anchor}"


def _anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", text), re.M)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_paths_in_documents_exist(document: Path) -> None:
    names = re.findall(r"`((?:[\w.-]+/)+[\w.-]*|\w+\.(?:py|cfg))`", document.read_text())
    ours = [name for name in names if (ROOT / name.partition("/")[0]).exists()]
    assert [name for name in ours if not (ROOT / name).exists()] == []
    if document.name == "architecture.md":
        assert len(set(ours)) > 50
        assert ours == names


def test_architecture_lists_the_rooms_from_top_to_bottom() -> None:
    text = section(read("docs/architecture.md"), "## The rooms")
    floor = {
        name.removesuffix(".py").rstrip("/").replace("/", "."): number
        for number, row in enumerate(re.findall(r"^\| (`.*?) \|", text, re.M))
        for name in re.findall(r"`([^`]+)`", row)
    }
    assert {room(module) for module in FILES} - {ENGINE} == set(floor)
    up = [
        str(each)
        for each in RUNTIME
        if floor.get(room(each.importer), 0) > floor.get(room(each.imported), len(floor))
    ]
    assert up == []


def test_contributing_lists_the_rooms_of_the_engine() -> None:
    house = section(read("CONTRIBUTING.md"), "## The house")
    lines = re.findall(r"^      (\w.*)$", house.split("    tests/ ")[0], re.M)
    listed = {name for line in lines for name in re.split(r" {3,}", line)[0].split()}
    rooms = {room(module) for module in FILES if module.startswith("mtt.")}
    assert {f"mtt.{name.removesuffix('/')}" for name in listed} == rooms


@pytest.mark.parametrize(
    ("module", "constant", "row"),
    [
        ("mtt.layers.tcp", "HIGH_WATER", "| socket, "),
        ("mtt.layers.tcp", "LOW_WATER", "| socket, "),
        ("mtt.layers.mux_tunnel", "RECEIVE_BUDGET", "| session of the tunnel "),
        ("mtt.layers.mux_tunnel", "OWN_BUDGET", "| session of the tunnel "),
        ("mtt.layers.mux_tunnel", "STOP_AT", "| session of the tunnel "),
        ("mtt.layers.mux_tunnel", "SHARED_BUDGET", "| session of the tunnel "),
        ("mtt.layers.anytls", "RECEIVE_BUDGET", "| AnyTLS session "),
        ("mtt.layers.mux", "UNSENT_LIMIT", "| multiplexed connection, "),
        ("mtt.layers.tls", "ANSWERS_LIMIT", "| answers "),
        ("mtt.layers.websocket", "CONTROL_BACKLOG", "| answers "),
        ("mtt.layers.mux", "ANSWERS_LIMIT", "| answers "),
        ("mtt.udp.link", "WRITE_SIZE", "| link with datagrams "),
        ("mtt.udp.queues", "MAX_FLOW_BYTES", "| link with datagrams "),
        ("mtt.udp.queues", "MAX_BYTES", "| link with datagrams "),
        ("anyproxy.forwarded_udp", "MAX_HELD", "| user of a forwarded UDP port "),
        ("mtt.wire.http1", "MAX_HEAD", "| HTTP server "),
        ("mtt_mu_server.api", "BODY_LIMIT", "| HTTP server "),
    ],
)
def test_bounds_in_the_architecture_are_those_in_force(
    module: str, constant: str, row: str
) -> None:
    (line,) = (line for line in read("docs/architecture.md").splitlines() if line.startswith(row))
    kibibytes = getattr(importlib.import_module(module), constant) // 1024
    size = f"{kibibytes} KiB" if kibibytes < 1024 else f"{kibibytes // 1024} MiB"
    assert re.search(rf"\b{size}\b", line), size


def test_paths_in_the_ci_script_exist() -> None:
    paths = re.findall(r"\btests/[\w/.]+", (ROOT / ".ci" / "run").read_text())
    assert len(paths) > 5
    assert [path for path in paths if not (ROOT / path).exists()] == []
