"""The server's HTTP side: upgrades, web visitors, who may ask."""
