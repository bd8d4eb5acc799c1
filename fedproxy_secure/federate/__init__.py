"""Stage 2: adapters, one client's local round, and the server's fusion of updates."""
