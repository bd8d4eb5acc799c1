"""Training and evaluation without padding: several sequences in one row of tokens.

packs          rows joined end to end, and the place of each token in padded rows
packed         a model's logits for a pack, and whether a model can be packed
attention      attention within rows, for any model that transformers runs
fast_blocks    which blocks of a model a faster pass may take over, and when
llama_block    that pass: a Llama block with a hand-written gradient
row_attention  attention in it, at each row's own length
"""
