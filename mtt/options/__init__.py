"""What the commands can be told: the grammar, the tables, the checked results."""
