"""Processes of the pool of tasks."""
