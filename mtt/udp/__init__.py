"""UDP flows through the tunnel: the local port, the stream that carries them, the destination."""
