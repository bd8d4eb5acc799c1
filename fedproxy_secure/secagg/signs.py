"""Counts of positive and negative values, several coordinates in one word, for granularity `coordinate`.

For each coordinate a client sends two fields side by side: the first is 1 if its value is positive, the
second is 1 if its value is negative. A field can hold a count over all clients, so sums of words are sums
of each field.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedproxy_secure.errors import ProtocolAborted


def words_for(d: int, *, clients: int, bits: int) -> int:
    """Return how many words the signs of `d` coordinates take, for up to `clients` clients."""
    return -(-d // coordinates_per_word(clients, bits))


def largest_word(*, clients: int, bits: int) -> int:
    """Return the largest word that one client can send: the one in which all coordinates are negative."""
    width = _width(clients)
    return sum(1 << (i * 2 * width + width) for i in range(coordinates_per_word(clients, bits)))


def coordinates_per_word(clients: int, bits: int) -> int:
    """Return how many coordinates share a word."""
    return bits // (2 * _width(clients))


def pack_signs(update: np.ndarray, *, clients: int, bits: int) -> np.ndarray:
    """Return the signs of one client's update [d] as words, int64; a zero counts for neither side."""
    width, per_word = _width(clients), coordinates_per_word(clients, bits)
    padded = np.zeros(-(-len(update) // per_word) * per_word, dtype=np.int64)
    padded[: len(update)] = (update > 0) + ((update < 0).astype(np.int64) << width)
    shifts = 2 * width * np.arange(per_word)
    words: np.ndarray = (padded.reshape(-1, per_word) << shifts).sum(axis=1)
    return words


def unpack_signs(words: np.ndarray, *, clients: int, bits: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Return how many values are positive and how many are negative at each coordinate, int64 [d] each.

    Args:
        words: the sum of clients' segments `signs`.
        clients: the size of the cohort, for which the words were packed.
        bits: of a ring word.
        d: the number of coordinates.
    """
    width, per_word = _width(clients), coordinates_per_word(clients, bits)
    shifts: Sequence[int] = [2 * width * i for i in range(per_word)]
    pairs = np.stack([words >> s for s in shifts], axis=1).reshape(-1)[:d]
    mask = (1 << width) - 1
    return pairs & mask, (pairs >> width) & mask


def check_counts(words: np.ndarray, *, cohort: int, bits: int, d: int, clients: int) -> None:
    """Raise `ProtocolAborted` unless the sum of words has counts that `clients` clients can have.

    That is, at most `clients` on both sides of a coordinate together, and zeros where there is no
    coordinate. `cohort` is the number of clients for which the words were packed.
    """
    per_word = coordinates_per_word(cohort, bits)
    ups, downs = unpack_signs(words, clients=cohort, bits=bits, d=len(words) * per_word)
    spare = words >> (2 * _width(cohort) * per_word)
    if spare.any() or ups[d:].any() or downs[d:].any():
        raise ProtocolAborted("sum of signs: has counts where there is no coordinate; a client lied")
    if (ups + downs).max(initial=0) > clients:
        raise ProtocolAborted(f"sum of signs: counts more than {clients} at a coordinate; a client lied")


def _width(clients: int) -> int:
    """Return how many bits a count from 0 to `clients` takes."""
    return clients.bit_length()
