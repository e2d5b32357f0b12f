"""AnyTLS: the commands anytls-client and anytls-server."""
