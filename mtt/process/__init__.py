"""The process around a service: event loop, signals, workers, systemd."""
