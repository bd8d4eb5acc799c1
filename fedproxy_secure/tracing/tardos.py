"""Tardos' fingerprinting code with symmetric accusation: codewords, scores, and a proved threshold.

The code is that of Tardos ("Optimal probabilistic fingerprint codes", 2003; J. ACM 55(2), 2008): position i
has a secret probability p_i, drawn from the arcsine law, and each client's bit there is 1 with probability
p_i. Accusation is symmetric in 0 and 1, as proposed by Skoric, Katzenbeisser and Celik ("Symmetric Tardos
fingerprinting codes for arbitrary alphabet sizes", Des. Codes Cryptogr. 46(2), 2008): with an answer y_i
from -1 to 1 read from the leaked copy, a client with bit x_i gets

    y_i * sqrt((1 - p_i) / p_i)  if x_i = 1        - y_i * sqrt(p_i / (1 - p_i))  if x_i = 0

The terms of a client who had no part in the copy are independent of y, with mean 0 and variance y_i^2. So
the chance of its score is bounded by Chernoff's bound, computed for the answers of this copy.

Guarantees: whatever the copy holds, the chance that `Innocence.threshold` is reached by any of `clients`
codewords that were drawn independently of the answers is at most `error`. No assumption is made on how the
copy was made, nor on how many clients made it. Not guaranteed: that a client who did take part is above the
threshold; that takes enough positions, about proportional to the square of the number of colluders.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fedproxy_secure.errors import ConfigError

MOST_COLLUDERS = 3  # the cut-off of the arcsine law is chosen for this number
CUT = 1.0 / (300 * MOST_COLLUDERS)  # Tardos' cut-off: p_i is between CUT and 1 - CUT
_EXPONENTS = np.geomspace(0.01, 4.0, 40)  # where Chernoff's bound is taken; each of them is valid


def probabilities(uniform: np.ndarray) -> np.ndarray:
    """Return p, float64 [m], distributed by the arcsine law, from uniform numbers [m] in [0, 1)."""
    least = math.asin(math.sqrt(CUT))
    return np.asarray(np.sin(least + uniform * (math.pi / 2 - 2 * least)) ** 2)


def codeword(uniform: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Return one client's bits, bool [m], from uniform numbers [m] in [0, 1) of its own."""
    return np.asarray(uniform < p)


def scores(words: np.ndarray, answers: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Return each client's score, float64 [n].

    Args:
        words: codewords, bool [n, m].
        answers: read from the leaked copy, float64 [m], from -1 (surely 0) to 1 (surely 1).
        p: float64 [m].
    """
    _check(answers, p)
    one, zero = np.sqrt((1 - p) / p), -np.sqrt(p / (1 - p))
    return np.asarray(np.where(words, one, zero) @ answers)


@dataclass(frozen=True, kw_only=True)
class Innocence:
    """Bounds on the score of an innocent client, from `log_moments`: log E exp(t * score) by t."""

    log_moments: np.ndarray

    @classmethod
    def of(cls, answers: np.ndarray, p: np.ndarray) -> Innocence:
        """Return the moments for answers and `p` as in `scores`."""
        _check(answers, p)
        one, zero = answers * np.sqrt((1 - p) / p), -answers * np.sqrt(p / (1 - p))
        log_p, log_q = np.log(p), np.log1p(-p)
        moments = [np.logaddexp(log_p + t * one, log_q + t * zero).sum() for t in _EXPONENTS]
        return cls(log_moments=np.array(moments))

    def threshold(self, *, clients: int, error: float) -> float:
        """Return the least score at which a client is accused.

        Args:
            clients: how many are judged.
            error: bound on the probability, in (0, 1), that any innocent client among them is accused.
        """
        if not 0 < error < 1:
            raise ConfigError(f"error={error}: must be between 0 and 1")
        return float(np.min((self.log_moments + math.log(clients / error)) / _EXPONENTS))

    def chance(self, score: float) -> float:
        """Return a bound, from 0 to 1, on the probability that one given innocent client scores as high."""
        return math.exp(min(0.0, float(np.min(self.log_moments - _EXPONENTS * score))))


def _check(answers: np.ndarray, p: np.ndarray) -> None:
    if answers.shape != p.shape or not np.all(np.abs(answers) <= 1):
        raise ValueError("answers: must be one number from -1 to 1 for each position")
