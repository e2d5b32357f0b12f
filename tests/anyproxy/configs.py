"""Configuration files of the Go program, and reading them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from anyproxy.client_config import agent_options
from anyproxy.config import TREE, with_file
from anyproxy.gateway_config import gateway_options
from anyproxy.options import AgentOptions, GatewayOptions
from mtt.errors import UsageError
from mtt.options.flags import Values
from mtt.options.section import Section

# All keys of the Go program that can be used here, as one file for both ends.
GO = """\
---
log:
  level: "warn"
  format: "json"
  output: "file"
  file: "logs/anyproxy.log"
  max_size: 100
  max_backups: 5
  max_age: 30
  compress: true

gateway:
  listen_addr: ":9091"
  transport_type: "websocket"
  tls_cert: "certs/server.crt"
  tls_key: "certs/server.key"
  auth_username: "agents"
  auth_password: "agents-password"
  credential:
    type: "file"
    file_path: "credentials.json"
    db:
      driver: ""
      data_source: ""
      table_name: "credentials"
  proxy:
    http:
      listen_addr: ":8080"
      tls_cert: "certs/proxy.crt"
      tls_key: "certs/proxy.key"
    socks5:
      listen_addr: ":1080"
    tuic:
      listen_addr: ""
  web:
    enabled: true
    listen_addr: ":8090"
    static_dir: "web/gateway/static"
    auth_enabled: true
    auth_username: "admin"
    auth_password: "web-password"
    session_key: "a key"

client:
  id: "home"
  group_id: "family"
  group_password: 0123
  replicas: 3
  gateway:
    addr: "gateway.example.com:9091"
    transport_type: "websocket"
    tls_cert: "certs/server.crt"
    auth_username: "agents"
    auth_password: "agents-password"
  forbidden_hosts:
    - "0.0.0.0"
    - "::1"
    - "192.168.0.0/16"
  allowed_hosts:
    - "example.com"
    - ".*"
  open_ports:
    - remote_port: 8000
      protocol: "tcp"
      local_port: 3000
      local_host: "127.0.0.1"
    - remote_port: 8022
      protocol: "udp"
      local_port: 22
      local_host: "192.168.1.1"
  web:
    enabled: false
    listen_addr: ":8091"
"""

# The older shape, with logins of the proxies, and clients without groups.
OLDER = """\
proxy:
  socks5:
    listen_addr: ":1080"
    auth_username: ""
    auth_password: ""
  http:
    listen_addr: ":8080"
    auth_username: "user"
    auth_password: "user-password"
transport:
  type: "websocket"
gateway:
  listen_addr: ":8443"
  tls_cert: "certs/server.crt"
  tls_key: "certs/server.key"
  auth_username: "agents"
  auth_password: "agents-password"
client:
  gateway_addr: "127.0.0.1:8443"
  gateway_tls_cert: "certs/server.crt"
  client_id: "home"
  # group_id: "example"
  replicas: 3
  auth_username: "agents"
  auth_password: "agents-password"
  forbidden_hosts:
    - "192.168.1.1"
  open_ports:
    # - remote_port: 8000
"""

NO_VARIABLES: Mapping[str, str] = {}


def gateway_of(tree: dict[str, Any], **values: Any) -> GatewayOptions:
    """The options of a gateway with this tree as its file."""
    return gateway_options({TREE: Section("", tree), **values})


def agent_of(tree: dict[str, Any], **values: Any) -> AgentOptions:
    """The options of a client with this tree as its file."""
    return agent_options({TREE: Section("", tree), **values})


def values_of(folder: Path, text: str, ending: str = "yaml", **given: Any) -> Values:
    """What the commands make of a file."""
    path = folder / f"config.{ending}"
    path.touch(0o600)
    path.write_text(text)
    return with_file({"config": str(path), **given}, NO_VARIABLES)


def merged(tree: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """A copy of `tree` with another value at `path`, like "gateway.proxy.http"."""
    copy: dict[str, Any] = json.loads(json.dumps(tree))
    *above, last = path.split(".")
    place = copy
    for key in above:
        place = place.setdefault(key, {})
    place[last] = value
    return copy


def error_of_gateway(tree: dict[str, Any]) -> str:
    with pytest.raises(UsageError) as caught:
        gateway_of(tree)
    return str(caught.value)


def error_of_agent(tree: dict[str, Any]) -> str:
    with pytest.raises(UsageError) as caught:
        agent_of(tree)
    return str(caught.value)
