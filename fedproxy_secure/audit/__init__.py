"""The audit log of a run: a signed chain of events that nobody without the key can change unnoticed."""
