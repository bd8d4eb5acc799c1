"""Primitives, secrets, key files and secret sharing; the base of secure aggregation and the audit log."""
