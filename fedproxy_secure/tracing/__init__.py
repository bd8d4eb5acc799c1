"""Traitor tracing: each client's copy of the proxy carries a code, so that a leak names its client."""
