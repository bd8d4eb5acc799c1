"""Protections that small matrices sweep."""

PLAINTEXT, MASKING = {"scheme": "unsafe_plaintext"}, {"scheme": "masking"}
