"""The LLM, its tokenizer, its blocks, and the adapters that are trained."""
