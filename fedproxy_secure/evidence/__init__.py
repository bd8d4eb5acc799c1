"""Estimates, findings and measures: what attacks, gate and report share."""
