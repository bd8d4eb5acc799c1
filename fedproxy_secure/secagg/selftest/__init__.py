"""Attacks on the masking protocol, tried on this installation and on known-bad clients and servers."""
