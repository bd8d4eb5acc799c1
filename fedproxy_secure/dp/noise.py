"""Noise and sampling for differential privacy, from AES-256 in counter mode under one 32-byte key.

Guarantees: with a key from the operating system, which records are sampled and what noise is drawn cannot
be told from ideal randomness (AES-256 as a pseudo-random function). A record's chance to be sampled is the
rate, rounded down to a multiple of 2^-64. Noise is integers, drawn from uniform words by tables: see
`discrete`. No floating-point number is noise.
"""

from __future__ import annotations

import hashlib
import os

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR

from fedproxy_secure.runtime.randomness import stream_seed

KEY_BYTES = 32


def fresh_key() -> bytes:
    """Return 32 random bytes from the operating system."""
    return os.urandom(KEY_BYTES)


def simulated_key(seed: int, client: str, round_number: int) -> bytes:
    """Return the key that `privacy.randomness: unsafe_simulated` gives a client's round, 32 bytes.

    It follows from the run's seed: a simulation repeats, and whoever knows the seed knows the noise.
    """
    return hashlib.sha256(str(stream_seed(seed, "noise", client, round_number)).encode()).digest()


class Noise:
    """A stream of random numbers; the same key gives the same stream."""

    def __init__(self, key: bytes) -> None:
        self._stream = Cipher(AES256(key), CTR(bytes(16))).encryptor()

    def words(self, count: int) -> np.ndarray:
        """Return the next uniform words, uint64 [count]."""
        return np.frombuffer(self._stream.update(bytes(8 * count)), dtype="<u8")

    def poisson_sample(self, population: int, rate: float) -> np.ndarray:
        """Choose among 0 .. population - 1, each with probability `rate`; int64, ascending."""
        words = self.words(population)
        if rate >= 1:
            return np.arange(population)
        return np.flatnonzero(words < np.uint64(int(rate * 2**64)))
