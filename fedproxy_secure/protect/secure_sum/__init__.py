"""Both sides of a round whose server learns sums only, by masking or CKKS."""
