"""The tunnel under faults, abuse, and a long life in short: `python -m soak` or `make soak`."""
