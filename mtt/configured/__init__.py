"""The tunnels of a configuration file: several services in one process, which can be reloaded."""
