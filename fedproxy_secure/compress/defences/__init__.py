"""Compressions that let out less of the LLM than its own blocks.

moments          what the LLM's linear maps read on public text
maps             the parts of a decoder block that a compression may change, and whether it knows them
low_rank         every block, each linear map as the product of two thin factors
embeddings       embedding matrices of lower rank, for `low_rank`
width            every block with fewer channels and heads
quantised        blocks rounded to a few bits
withheld_bottom  the first blocks replaced by one that is trained on public text
rotated          blocks whose hidden states are secretly rotated

A proxy with every block keeps the LLM's depth, so a difference of a block belongs to the block of the same
index. Its `remove_ratio` is the share of each block's numbers to remove, not of blocks.
"""
