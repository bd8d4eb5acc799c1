"""Stage 3: merge the tuned adapter into the blocks and plug them back into the LLM, untrained."""
