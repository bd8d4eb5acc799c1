"""Traitor tracing: each client's copy of the proxy carries a code that identifies its client in a leak."""
