"""Primitives, secrets, key files and secret sharing; secure aggregation and the audit log stand on them."""
