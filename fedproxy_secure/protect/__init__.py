"""How updates reach the server: protections, one module a scheme.

base         what a protection is
plaintext    `unsafe_plaintext`: the server sees every update
masking      sums by pairwise masks; optionally with noise inside (differential privacy of clients)
ckks         sums by homomorphic encryption
sums         what masking and ckks have in common
one_message  the base class of protections with one message per client
broadcast    what starts a round under every protection: sent, checked, trained from
secure_sum/  both sides of a round whose server learns sums only

A federation asks a `Protection` object and never for a scheme's name. What compares protections knows two
by name: `unsafe_plaintext`, which the others are measured against, and `masking`, which methods of a
comparison use.
"""
