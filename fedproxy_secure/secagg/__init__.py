"""Secure aggregation of updates: sums that nobody can take apart. Needs no torch and no Flower."""
