"""Noise on logits that is a fixed function of key, level and text: repeated queries get the same answer.

The noise after token i of a text comes from a stream whose key is derived, by HKDF-SHA256, from a secret
key, the noise's level, and the tokens up to and including i. AES-256 in counter mode makes the stream, and
the inverse of the normal distribution function turns its words into Gaussian numbers.

The noise must depend on nothing else. A causal model's logits after token i do not depend on later tokens.
Noise that depended on the whole text would differ between two texts with a common beginning, and a customer
could average it away by asking a text with many endings. Noise that depended on the customer could be
averaged away by two customers.

Guarantees: whoever does not know the key cannot tell the noise of a text from fresh Gaussian noise (within
the resolution of 32-bit words), and learns nothing more by asking the same beginning again. Not guaranteed:
protection against texts that mean the same in other words, whose noise is independent; a bound in the sense
of differential privacy; protection of the difference between two models that answer under one key and
level, which has no noise; protection of one model under two levels, whose noises are independent and
average out.
"""

from __future__ import annotations

import hashlib

import numpy as np
from scipy.special import ndtri

from fedproxy_secure.crypto.primitives import derive, keystream
from fedproxy_secure.crypto.secret import Secret

LABEL = b"fedproxy-secure api noise 1"
WORD_BYTES = 4


def noise(key: Secret, ids: np.ndarray, *, level: float, size: int, start: int = 0) -> np.ndarray:
    """Return Gaussian noise after each token of a text from token `start` on.

    Args:
        key: the secret key.
        ids: the text's tokens, int64 [n].
        level: standard deviation, nats.
        size: V, the number of logits after each token.
        start: index of the first token to return noise for.

    Returns:
        float32 [n - start, V].
    """
    hasher = hashlib.sha256(
        LABEL + repr(float(level)).encode() + b"\0" + ids[:start].astype("<i8").tobytes()
    )
    rows = np.empty((len(ids) - start, size), dtype=np.float32)
    for row, token in zip(rows, ids[start:].astype("<i8"), strict=True):
        hasher.update(token.tobytes())
        row[:] = level * _gaussian(derive(key, info=hasher.digest()), size)
    return rows


def _gaussian(key: Secret, count: int) -> np.ndarray:
    """Return standard normal numbers, float64 [count], from a key with no other use."""
    words = np.empty(count, dtype="<u4")
    zeros = bytes(count * WORD_BYTES)
    keystream(key).update_into(zeros, words.view(np.uint8).data)
    numbers: np.ndarray = ndtri((words + 0.5) / 2.0**32)
    return numbers
