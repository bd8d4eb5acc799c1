"""Stage 1: from the LLM to the proxy. Importance, block plan, building, fidelity."""
