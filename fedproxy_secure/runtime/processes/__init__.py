"""The processes of the pool of tasks."""
