"""Extraction: from the proxy and the API back to the LLM."""
