"""Transports stacked on a socket: TCP, TLS, WebSocket, and the streams of multiplexed sessions."""
