"""The engine of mos-tls-tunnel: wire formats, transport layers, relay, client and server."""

__version__ = "0.1.0"
