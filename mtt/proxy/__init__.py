"""A local proxy port: SOCKS and HTTP clients, and streams to where they want to go."""
