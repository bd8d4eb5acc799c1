"""Masks: key streams added to a vector of ring words, or subtracted from it.

Each key stream is AES-256 in counter mode. The vector is processed in chunks: a chunk of the vector and of
one stream stay in the cache while all streams are applied, so the cost is close to that of generating them.

Guarantees: without its key, a mask cannot be distinguished from uniform words (AES-256 as a pseudo-random
function), provided that a key is used for one vector only. The caller ensures that; nothing here checks it.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
from cryptography.hazmat.primitives.ciphers import CipherContext

from fedproxy_secure.crypto.primitives import keystream
from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.secagg.ring import CHUNK_WORDS


def add_masks(
    words: np.ndarray, *, plus: Sequence[Secret], minus: Sequence[Secret], threads: int = 1
) -> None:
    """Add the masks of the keys in `plus` to `words`, in place, and subtract those in `minus`.

    Args:
        words: uint16 or uint32 [d], contiguous; sums wrap, as in the ring.
        plus: 32-byte keys whose masks are added.
        minus: 32-byte keys whose masks are subtracted.
        threads: how many parts of the vector are processed at once; a key stream can start at any chunk.
    """
    chunks = -(-len(words) // CHUNK_WORDS)
    threads = max(1, min(threads, chunks))
    bounds = [CHUNK_WORDS * (chunks * i // threads) for i in range(threads + 1)]
    parts = list(pairwise(bounds))
    if threads == 1:
        _add_to_part(words, plus, minus, *parts[0])
        return
    with ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(_add_to_part, words, plus, minus, *part) for part in parts]:
            future.result()


def _add_to_part(
    words: np.ndarray, plus: Sequence[Secret], minus: Sequence[Secret], first: int, last: int
) -> None:
    begin = first * words.itemsize
    streams: list[tuple[CipherContext, np.ufunc]] = []
    streams += [(keystream(key, from_byte=begin), np.add) for key in plus]
    streams += [(keystream(key, from_byte=begin), np.subtract) for key in minus]
    zeros = bytes(CHUNK_WORDS * words.itemsize)
    mask = np.empty(CHUNK_WORDS, dtype=words.dtype.newbyteorder("<"))
    for start in range(first, last, CHUNK_WORDS):
        chunk = words[start : start + CHUNK_WORDS]
        size = len(chunk) * words.itemsize
        for stream, apply in streams:
            stream.update_into(memoryview(zeros)[:size], mask.view(np.uint8)[:size].data)
            apply(chunk, mask[: len(chunk)], out=chunk)
