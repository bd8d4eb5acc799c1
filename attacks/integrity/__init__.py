"""Adversaries that deviate, and what sums and cohorts alone give away."""
