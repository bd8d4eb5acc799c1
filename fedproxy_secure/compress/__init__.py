"""Stage 1: from the LLM to the proxy that clients get.

base             what a compression is, and how another package adds one
proxy            the proxy: the small model, and how what it learns is lifted back to the LLM
drop_blocks      the paper's compression: leave out the blocks that matter least
importance       how much each block matters
importance_memo  importance scores that take long to compute, stored on disk
plan             which LLM block each proxy block is a copy of
block_states     one pass of a model that also gives what each block passes on
distance         how far a proxy's predictions and hidden states are from its LLM's
fidelity         how close a proxy comes to its LLM
verbatim         how much of the LLM a client holds bit for bit
defences/        compressions that let out less than the LLM's own blocks
healing/         training on public text that brings a proxy closer to its LLM
"""
