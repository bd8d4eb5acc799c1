"""The gate: it judges a report by a policy."""
