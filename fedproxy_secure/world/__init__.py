"""The synthetic world: its words, its texts, and the demo LLM; real things and texts for real LLMs."""
