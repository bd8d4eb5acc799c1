"""Records that are conversations: read from rows, and written down as a tokenizer's chat template does."""
