"""Judging: from an attack's numbers to its outcome, and to what those numbers could have shown."""
