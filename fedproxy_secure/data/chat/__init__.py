"""Records that are conversations: read from rows, and written down as an LLM's chat template does."""
