"""The version of all programs, where nothing else is imported for it."""

__version__ = "0.2.0"
