"""Codecs: bytes to values and back, without asyncio, ssl, socket or time."""
