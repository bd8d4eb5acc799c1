"""How updates reach the server: protections, one module a scheme.

base         what a protection is
plaintext    `unsafe_plaintext`: the server sees every update
masking      sums by pairwise masks; optionally with noise inside (differential privacy of clients)
ckks         sums by homomorphic encryption
sums         what masking and ckks have in common
one_message  the base class of protections with one message per client
gathering    what rounds share on the server's side: gather answers, fuse a sum
kept         what a client of another package's protection keeps between steps, to be used once
rounds       one round under any protection, and the check of its result
broadcast    what starts a round under every protection: sent, checked, trained from
secure_sum/  both sides of a round whose server learns sums only

A federation calls a `Protection` object and never asks for a scheme's name. Code that compares protections
knows two names: `unsafe_plaintext`, the baseline, and `masking`, which methods of a comparison use.
"""
