"""SIP003: how shadowsocks starts, configures and ends the commands as plugins."""
