"""Sockets: listening, accepting, connecting, and name lookups."""
