"""Command-line options: the syntax, the tables of options, the checked results."""
