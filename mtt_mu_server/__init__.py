"""mtt-mu-server: many users on one TLS port, identified by the path of their WebSocket request."""
