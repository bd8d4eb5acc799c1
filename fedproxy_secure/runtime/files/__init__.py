"""Atomically written files, and locks that end with their holder."""
