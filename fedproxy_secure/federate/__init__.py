"""Stage 2: one client's local round, and the server's fusion of updates."""
