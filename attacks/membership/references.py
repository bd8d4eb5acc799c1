"""Membership scores against references: slopes over rounds, RMIA and LiRA."""

from __future__ import annotations

import numpy as np

RMIA_A = 0.3  # a: a record's likelihood without training is taken as ((1 + a) x reference + 1 - a) / 2


def slopes(series: np.ndarray) -> np.ndarray:
    """Return each document's least-squares slope of losses [rounds, n] over rounds: [n]."""
    time = np.arange(len(series)) - (len(series) - 1) / 2
    return np.asarray(time @ series / max(float(time @ time), 1e-12))


def rmia(
    first: np.ndarray, last: np.ndarray, first_others: np.ndarray, last_others: np.ndarray
) -> np.ndarray:
    """Return RMIA's offline score, [n]: the share of the population that each record beats.

    A record's likelihood without training is estimated from its reference's, drawn towards 1, so that a
    fall in loss counts for little in a record that stays unlikely.

    Args:
        first, last: losses of the records in the first and the last round, [n].
        first_others, last_others: losses of the population, [m].
    """

    def ratio(before: np.ndarray, after: np.ndarray) -> np.ndarray:
        alone = ((1 + RMIA_A) * np.exp(-before) + (1 - RMIA_A)) / 2
        return np.asarray(-after - np.log(alone))

    ratios, population = ratio(first, last), ratio(first_others, last_others)
    # the small term orders records that beat equally many
    return np.asarray((ratios[:, None] >= population[None, :]).mean(axis=1) + 1e-6 * ratios)


def halves(shadows: int, documents: int, rng: np.random.Generator) -> np.ndarray:
    """Return which shadow trains on which document, bool [shadows, documents].

    Each document is in half of the shadows.
    """
    ranks = rng.permuted(np.tile(np.arange(shadows)[:, None], (1, documents)), axis=0)
    return np.asarray(ranks < shadows // 2)


def lira(observed: np.ndarray, seen: np.ndarray, with_it: np.ndarray) -> np.ndarray:
    """Return the log-likelihood ratio of observed losses [n] under the shadows' losses [s, n].

    Logarithms of losses are taken as normal, with a mean for each document and side and one spread for all,
    since there are few shadows. `with_it`, bool [s, n], says which shadow trained on which document.
    """
    values, at = np.log(seen + 1e-6), np.log(observed + 1e-6)
    inside = (values * with_it).sum(axis=0) / with_it.sum(axis=0)
    outside = (values * ~with_it).sum(axis=0) / (~with_it).sum(axis=0)
    spread = float(np.std(values - np.where(with_it, inside, outside))) + 1e-6
    return np.asarray((np.square(at - outside) - np.square(at - inside)) / (2 * spread**2))
