"""Flower apps and engines: one server app, one client app, three ways to run them. No mathematics."""
