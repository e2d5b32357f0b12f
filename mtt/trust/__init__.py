"""Identity and trust: certificates, keys, pins, session tickets, passwords."""
