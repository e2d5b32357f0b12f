"""The parsers of AnyProxy: between gateway and agent, ours and the Go program's."""

from __future__ import annotations

import contextlib
import ipaddress

from anyproxy.messages import format_ports, format_results, parse_ports, parse_results
from anyproxy.options import UDP, OpenPort
from anyproxy.ports import PortResult
from mtt.errors import MttError
from mtt.outcome import Outcome
from mtt.wire import agent, anyproxy
from soak.mutation import Parser

_SSH = OpenPort(
    remote_port=2222,
    local_host="nas.example",
    local_port=22,
    proxy_protocol="v1",
    allow_from=(ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("2001:db8::/32")),
)
_DNS = OpenPort(remote_port=0, local_host="::1", local_port=53, protocol=UDP)
_RESULTS = (PortResult(_SSH, "127.0.0.1:2222", is_standby=True), PortResult(_DNS, error="in use"))

_HEADS = (
    agent.Head(agent.TCP, "nas.example", 22, ("198.51.100.7", 4000)).encode(),
    agent.Head(agent.UDP, "2001:db8::1", 0).encode() + b"data",
)
_ANSWERS = (
    agent.Answer(Outcome.SUCCEEDED, ("10.0.0.5", 22)).encode() + b"data",
    agent.Answer(Outcome.TIMED_OUT).encode(),
)
MESSAGES = (
    agent.encode_message({"ports": format_ports((_SSH, _DNS))}),
    agent.encode_message({"ports": format_results(_RESULTS)}),
    agent.encode_message({"drain": True}),
)
_ID = anyproxy.new_id(bytes(12))
GO_MESSAGES = (
    anyproxy.Connect(_ID, "tcp", "nas.example:22").encode(),
    anyproxy.ConnectResponse(_ID, False, "connection refused").encode(),
    anyproxy.StreamData(_ID, b"data").encode(),
    anyproxy.Close(_ID).encode(),
)


def _message(data: bytes) -> None:
    found = agent.parse_message(data)
    if found is not None:
        value = found[0].get("ports")
        with contextlib.suppress(MttError):
            format_ports(parse_ports(value))
        with contextlib.suppress(MttError):
            format_results(parse_results(value, (_SSH, _DNS)))


ANYPROXY_PARSERS: dict[str, Parser] = {
    "agent's head": Parser(agent.parse_head, _HEADS, (agent.AgentError,)),
    "agent's answer": Parser(agent.parse_answer, _ANSWERS, (agent.AgentError,)),
    "agent's message": Parser(_message, MESSAGES, (agent.AgentError,)),
    "Go agent's message": Parser(
        anyproxy.parse, GO_MESSAGES, (anyproxy.AnyproxyError,)
    ),
}
