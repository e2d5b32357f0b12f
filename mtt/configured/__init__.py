"""The tunnels of a configuration file: several services in one process, changed as it runs."""
