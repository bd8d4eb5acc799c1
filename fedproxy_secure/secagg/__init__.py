"""Secure aggregation: the server learns sums of clients' updates, not the updates. No torch, no Flower.

terms         the terms of an attempt, which all its messages are bound to, and a client's policy on them
provision     keys of a federation, and the roster of its clients
steps         base classes of client and server sessions, whose steps run once and in order
messages      the messages of masking, and what each reveals to its receiver
ring          real numbers and counts as words of a ring, in which sums are exact
control       counts, weights and losses, summed with the update
signs         counts of positive and negative values, several coordinates in one word
granularity   fusion rules on sums: what a client adds, and how the server fuses the sums
expectations  the expected result of H-TIES where only the mean and the spread are known
sum_checks    whether a sum is one that honest clients can have
sketch        cosines between clients, from sketches of their updates
likeness      heterogeneity, weights and retention, from cosines
masking/      the protocol of pairwise masks
ckks/         the protocol of homomorphic encryption
selftest/     attacks on masking that an installation tries on itself
"""
