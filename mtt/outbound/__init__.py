"""Connections towards a stream's destination: direct, or through one of several upstreams."""
