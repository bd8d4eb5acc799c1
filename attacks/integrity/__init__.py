"""Integrity: adversaries that deviate from the protocol, and what sums and cohorts alone give away."""
