"""Who may come in by a name and a password, and what each has used."""
