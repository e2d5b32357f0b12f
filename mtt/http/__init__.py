"""The HTTP server: upgrades, web visitors, requests that coroutines answer, who may ask."""
