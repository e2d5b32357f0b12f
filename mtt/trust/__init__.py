"""Who we are and whom we believe: certificates, keys, pins, tickets."""
