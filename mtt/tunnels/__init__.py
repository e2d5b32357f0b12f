"""Tunnels that are open: relays between two streams, and what owns them."""
