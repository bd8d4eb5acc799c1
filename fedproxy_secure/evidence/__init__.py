"""Estimates, findings and measures, which attacks, gate and report share."""
