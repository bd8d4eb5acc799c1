"""The synthetic world: its words, its texts, its four private tasks, and the demo LLM."""
