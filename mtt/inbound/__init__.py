"""From an accepted connection to the streams that it carries."""
