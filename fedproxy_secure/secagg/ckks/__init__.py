"""Secure aggregation by homomorphic encryption (CKKS), and encrypted cosines for the weights of H-TIES."""
