"""The audit log of a run: what happened, in a chain that nobody without the key can change unseen."""
