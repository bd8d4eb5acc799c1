"""Masks: key streams added to and taken from a vector of ring words, a chunk at a time.

Each key stream is AES-256 in counter mode. A chunk of the vector and of one stream stay in the cache
while all streams pass over it, so the cost is close to that of making the streams.

Guarantees: without its key a mask cannot be told from uniform words (AES-256 as a pseudo-random
function). A key is used for one vector only; nothing here can check that.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives.ciphers import CipherContext

from fedproxy_secure.secagg.primitives import keystream
from fedproxy_secure.secagg.ring import CHUNK_WORDS
from fedproxy_secure.secagg.secret import Secret


def add_masks(words: np.ndarray, *, plus: Sequence[Secret], minus: Sequence[Secret]) -> None:
    """Add the masks of the keys in `plus` to `words`, in place, and subtract those in `minus`.

    Args:
        words: uint16 or uint32 [d], contiguous; sums wrap as the ring's do.
        plus, minus: 32-byte keys.
    """
    streams: list[tuple[CipherContext, np.ufunc]] = [(keystream(key), np.add) for key in plus]
    streams += [(keystream(key), np.subtract) for key in minus]
    zeros = bytes(CHUNK_WORDS * words.itemsize)
    mask = np.empty(CHUNK_WORDS, dtype=words.dtype.newbyteorder("<"))
    for start in range(0, len(words), CHUNK_WORDS):
        chunk = words[start : start + CHUNK_WORDS]
        size = len(chunk) * words.itemsize
        for stream, apply in streams:
            stream.update_into(memoryview(zeros)[:size], mask.view(np.uint8)[:size].data)
            apply(chunk, mask[: len(chunk)], out=chunk)
