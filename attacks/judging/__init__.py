"""Judge an attack by its numbers: its outcome, and what the numbers could have shown."""
