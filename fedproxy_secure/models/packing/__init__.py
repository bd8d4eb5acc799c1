"""Training and evaluation without padding: several sequences in one row of tokens.

packs          rows laid end to end, and where each token lies once the rows are padded
packed         a model's logits for a pack, and whether a model can be packed
attention      attention within rows, for any model that transformers runs
fast_blocks    which blocks of a model a faster pass may take over, and when
llama_block    that pass: a Llama block and its gradient by hand
row_attention  attention in it, at each row's own length
"""
