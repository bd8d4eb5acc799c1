"""Starts: models that an adversary has before any training, and recipes to train them."""
