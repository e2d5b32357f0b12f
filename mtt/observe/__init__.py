"""Metrics of a service, and the servers that publish them."""
