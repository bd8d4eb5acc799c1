"""Noise and sampling for differential privacy, from AES-256 in counter mode under one 32-byte key.

Guarantees: with a key from the operating system, which records are sampled and what noise is added cannot
be told from ideal randomness (AES-256 as a pseudo-random function). Each Gaussian number is half the sum of
four, so that reading its low bits back takes 2^159 tries (Holohan & Braghin 2021, section 5.1). Not
guaranteed: float arithmetic is not real arithmetic; accountants treat the noise as exactly Gaussian.
Integer noise has no such gap: see `discrete`.
"""

from __future__ import annotations

import os

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR

KEY_BYTES = 32


def fresh_key() -> bytes:
    """Return 32 random bytes from the operating system."""
    return os.urandom(KEY_BYTES)


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

    def gaussian(self, count: int) -> np.ndarray:
        """Return standard normal numbers, float64 [count]."""
        pairs = -(-count // 2)
        total = np.zeros((2, pairs))
        for _ in range(4):
            u, v = self._uniforms(pairs), self._uniforms(pairs)
            radius = np.sqrt(-2 * np.log(u))
            total[0] += radius * np.cos(2 * np.pi * v)
            total[1] += radius * np.sin(2 * np.pi * v)
        return (total / 2).reshape(-1)[:count]

    def _uniforms(self, count: int) -> np.ndarray:
        """Return float64 [count] in (0, 1): 53 bits and a half step, so that neither end occurs."""
        return ((self.words(count) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
