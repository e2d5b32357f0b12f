"""mtt-mu-server: many users on one TLS port, told apart by the path of their WebSocket request."""
