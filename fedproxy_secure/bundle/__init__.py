"""Evidence of a run in one archive that an outsider can check with a public key and no network."""
