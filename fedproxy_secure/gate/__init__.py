"""The gate: a policy, and whether a report meets it."""
