"""A local proxy port: SOCKS and HTTP clients, where they may go, and streams that go there."""
