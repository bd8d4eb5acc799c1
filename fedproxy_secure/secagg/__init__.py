"""Secure aggregation of updates: sums that nobody can take apart. Needs no torch and no Flower.

terms         what all parties of an attempt agree on, and a client's demands on it
provision     keys for a federation, and the roster of all clients
steps         sessions of a client and of the server, whose steps run once and in order
messages      the messages of masking, and what each reveals to whom
ring          numbers as words of a ring, in which sums are exact
control       counts, weights and losses inside the sum
signs         counts of signs, several coordinates in one word
granularity   fusion rules over sums: what clients add, and what the server makes of the sums
expectations  what H-TIES gives on average where only mean and spread are known
sum_checks    whether a sum is one that honest clients can have
sketch        cosines between clients, from sketches of their updates
likeness      what cosines come to: heterogeneity, weights and retention
masking/      the protocol of pairwise masks
ckks/         the protocol of homomorphic encryption
selftest/     attacks on masking that an installation tries on itself
"""
