"""SIP003: how shadowsocks starts the commands, tells them what to do, and ends them."""
