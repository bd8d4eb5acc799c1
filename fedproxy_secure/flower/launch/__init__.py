"""Flower's programs as processes of their own: the app they run, and what watches them."""
