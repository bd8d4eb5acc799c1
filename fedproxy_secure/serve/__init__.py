"""The owner's API: the fused LLM answers customers by a policy, and counts before it answers."""
