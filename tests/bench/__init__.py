"""Benchmarks: ratios and findings with targets, printed as a table and kept in `build/bench`."""
