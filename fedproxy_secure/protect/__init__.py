"""How updates reach the server: protections, one module a scheme.

    base         what a protection is
    plaintext    `unsafe_plaintext`: the server sees every update
    masking      sums by pairwise masks; optionally with noise inside (differential privacy of clients)
    ckks         sums by homomorphic encryption
    secure_sum/  both sides of a round whose server learns sums only

The rest of the project asks a `Protection` object and never for a scheme's name.
"""
