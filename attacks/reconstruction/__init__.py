"""Reconstruction: from updates and sums back to tokens, sentences and records."""
