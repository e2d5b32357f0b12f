"""The HTTP server: upgrades, the fallback site, handlers, and sockets for operators."""
