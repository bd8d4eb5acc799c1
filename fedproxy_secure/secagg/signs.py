"""Counts of signs, several coordinates in one word: what `coordinate` needs besides sums.

For each coordinate a client sends two counts, side by side: the first is 1 if its value is positive, the
second is 1 if it is negative. A count over all clients fits its field, so words add up field by field.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedproxy_secure.errors import ProtocolAborted


def words_for(d: int, *, clients: int, bits: int) -> int:
    """Return how many words the signs of `d` coordinates take."""
    return -(-d // coordinates_per_word(clients, bits))


def largest_word(*, clients: int, bits: int) -> int:
    """Return the largest word that one client can send: all its coordinates negative."""
    width = _width(clients)
    return sum(1 << (i * 2 * width + width) for i in range(coordinates_per_word(clients, bits)))


def coordinates_per_word(clients: int, bits: int) -> int:
    """Return how many coordinates share a word."""
    return bits // (2 * _width(clients))


def pack_signs(update: np.ndarray, *, clients: int, bits: int) -> np.ndarray:
    """Return the words, int64, of one client's update [d]; a zero counts on neither side."""
    width, per_word = _width(clients), coordinates_per_word(clients, bits)
    padded = np.zeros(-(-len(update) // per_word) * per_word, dtype=np.int64)
    padded[: len(update)] = (update > 0) + ((update < 0).astype(np.int64) << width)
    shifts = 2 * width * np.arange(per_word)
    words: np.ndarray = (padded.reshape(-1, per_word) << shifts).sum(axis=1)
    return words


def unpack_signs(words: np.ndarray, *, clients: int, bits: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Return how many of `clients` are positive and negative at each coordinate, int64 [d] each.

    `words`: the sum of the clients' segments `signs` in a ring of `bits`.
    """
    width, per_word = _width(clients), coordinates_per_word(clients, bits)
    shifts: Sequence[int] = [2 * width * i for i in range(per_word)]
    pairs = np.stack([words >> s for s in shifts], axis=1).reshape(-1)[:d]
    mask = (1 << width) - 1
    return pairs & mask, (pairs >> width) & mask


def check_counts(words: np.ndarray, *, cohort: int, bits: int, d: int, clients: int) -> None:
    """Raise `ProtocolAborted` unless the sum of words has counts that `clients` of a `cohort` can have.

    At each coordinate no more than `clients` on both sides together, and nothing where there is no
    coordinate.
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
