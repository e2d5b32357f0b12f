"""Users with names and passwords, and their traffic counters."""
