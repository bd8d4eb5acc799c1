"""Secure aggregation by homomorphic encryption (CKKS), and encrypted products for H-TIES' weights."""
