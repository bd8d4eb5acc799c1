"""The only source of seeded randomness: every stream is named, so adding one never shifts another.

Seeded streams serve reproducibility (data order, adapter initialisation, which clients take part).
Security never rests on them: keys, masks and noise come from the operating system.
"""

from __future__ import annotations

import hashlib

import numpy as np


def stream_seed(seed: int, *names: str | int) -> int:
    """Return a 63-bit seed for the stream `names` under the run's `seed`; the same on every machine.

    >>> stream_seed(0, "client", 3) == stream_seed(0, "client", 3) != stream_seed(0, "client", 4)
    True
    """
    text = "|".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def stream(seed: int, *names: str | int) -> np.random.Generator:
    """Return a NumPy generator for the stream `names` under the run's `seed`."""
    return np.random.default_rng(stream_seed(seed, *names))
