"""The proxy port: SOCKS and HTTP clients, UDP associations, and rules for destinations."""
