"""Differential privacy: what was spent (events, accountants, ledger) and the noise itself."""
