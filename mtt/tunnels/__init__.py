"""Tunnels: the relay, rate limits, and the service that owns them."""
