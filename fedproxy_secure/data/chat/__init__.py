"""Conversations as records: reading them from rows, and formatting them as text and tokens."""
