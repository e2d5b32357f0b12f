"""Configurations of sing-box and Xray as they are in use, and reading them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from anytls.config import ClientFile, read_client, read_server

# https://sing-box.sagernet.org/configuration/outbound/anytls, with the TLS that it needs.
OUTBOUND = """
{
  "type": "anytls",
  "tag": "anytls-out",

  "server": "vpn.example.com",
  "server_port": 8443,
  "password": "8JCsPssfgS8tiRwiMlhARg==",
  "idle_session_check_interval": "30s",
  "idle_session_timeout": "1m30s",
  "min_idle_session": 5,
  "tls": {
    "enabled": true,
    "server_name": "www.example.com",
    "alpn": ["h2", "http/1.1"],
    "min_version": "1.3",
    "utls": {"enabled": false, "fingerprint": "chrome"},
    "reality": {"enabled": false},
  },

  // Dial Fields
  "tcp_fast_open": false,
  "detour": "",
}
"""

# As a graphical client writes it.
WHOLE_CLIENT = """
{
  "log": {"level": "info", "timestamp": true},
  "dns": {"servers": [{"type": "udp", "tag": "remote", "server": "1.1.1.1"}]},
  "inbounds": [
    {"type": "tun", "tag": "tun-in", "address": ["172.19.0.1/30"], "auto_route": true},
    {
      "type": "mixed", "tag": "mixed-in", "listen": "::", "listen_port": 2080, "sniff": true,
      "users": [{"username": "me", "password": "mine"}, {"username": "you", "password": "yours"}]
    },
    {"type": "http", "tag": "http-in", "listen": "127.0.0.1", "listen_port": 2081}
  ],
  "outbounds": [
    {"type": "selector", "tag": "select", "outbounds": ["tokyo", "paris", "old"]},
    {
      "type": "anytls", "tag": "tokyo", "server": "192.0.2.1", "server_port": 443,
      "password": "first", "domain_resolver": "remote",
      "tls": {"enabled": true, "insecure": true, "server_name": "bing.com"}
    },
    {
      "type": "anytls", "tag": "paris", "server": "2001:db8::1", "server_port": 443,
      "password": "second",
      "tls": {
        "enabled": true, "disable_sni": true, "alpn": "h2",
        "certificate_public_key_sha256": ["2ZVxVcFhUQvu9y9vcDVqlFsJkMwpbHUnQ+gpCVyHt5k="]
      }
    },
    {"type": "vless", "tag": "old", "server": "192.0.2.9", "server_port": 443},
    {"type": "direct", "tag": "direct"}
  ],
  "route": {"rules": [{"action": "sniff"}], "final": "select"}
}
"""

# As installation scripts write it.
INBOUND = """
{
  "inbounds": [
    {
      "type": "anytls",
      "tag": "anytls-in",
      "listen": "::",
      "listen_port": 443,
      "users": [
        {"name": "sekai", "password": "8JCsPssfgS8tiRwiMlhARg=="},
        {"password": "another"}
      ],
      "padding_scheme": [
        "stop=8",
        "0=30-30",
        "1=100-400",
        "2=400-500,c,500-1000,c,500-1000,c,500-1000,c,500-1000",
        "3=9-9,500-1000",
        "4=500-1000",
        "5=500-1000",
        "6=500-1000",
        "7=500-1000"
      ],
      "udp_timeout": "2m",
      "tls": {
        "enabled": true,
        "server_name": "vpn.example.com",
        "certificate_path": "/etc/ssl/fullchain.pem",
        "key_path": "/etc/ssl/privkey.pem"
      }
    }
  ],
  "outbounds": [{"type": "direct"}]
}
"""

XRAY: dict[str, Any] = {
    "inbounds": [
        {"tag": "socks", "listen": "127.0.0.1", "port": 10808, "protocol": "socks",
         "settings": {"auth": "password", "udp": True, "accounts": [{"user": "a", "pass": "b"}]},
         "sniffing": {"enabled": True, "destOverride": ["http", "tls"]}},
    ],
    "outbounds": [
        {
            "tag": "proxy",
            "protocol": "anytls",
            "settings": {
                "servers": [
                    {"address": "one.example.com", "port": 443, "password": "first"},
                    {"address": "192.0.2.2", "port": 8443, "password": "second", "level": 0},
                ],
                "idleSessionCheckInterval": 30, "idleSessionTimeout": 45, "minIdleSession": 2,
            },
            "streamSettings": {
                "network": "tcp", "security": "tls",
                "tlsSettings": {"serverName": "www.example.com", "allowInsecure": False,
                                "alpn": ["h2", "http/1.1"], "fingerprint": ""},
                "sockopt": {"tcpFastOpen": False, "mark": 0},
            },
            "mux": {"enabled": False, "concurrency": -1},
        },
        {"tag": "direct", "protocol": "freedom"},
    ],
    "routing": {"rules": []},
}  # fmt: skip

TLS = {"enabled": True}
UTLS = {"enabled": True, "fingerprint": "chrome"}
SERVER = {"type": "anytls", "server": "h", "server_port": 1, "password": "s3cret", "tls": TLS}
LISTENER = {"type": "anytls", "listen": "::", "listen_port": 1,
            "users": [{"name": "a", "password": "s3cret"}], "tls": TLS}  # fmt: skip


def client(path: Path, content: Any) -> ClientFile:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_client(str(path))


def server(path: Path, content: Any) -> dict[str, Any]:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_server(str(path))


LINES = ["-----BEGIN CERTIFICATE-----", "s3cret", "-----END CERTIFICATE-----"]
TEXT = "\n".join(LINES) + "\n"
