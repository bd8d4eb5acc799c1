"""Membership scores that compare a model with a reference: windows, hard tokens, slopes, RMIA, LiRA."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

WINDOWS = (1, 2, 3, 4, 6, 9, 13, 18, 25, 32, 40)  # lengths of windows that vote, in tokens
HARD = 0.3  # the share of a text's tokens that count as hard, those likeliest to be wrong at first
RMIA_A = 0.3  # a: a record's likelihood without training is taken as ((1 + a) x reference + 1 - a) / 2


def window_votes(first: Sequence[np.ndarray], last: Sequence[np.ndarray]) -> np.ndarray:
    """Return the share of each text's windows in which the loss fell, averaged over window lengths, [n].

    What a model remembers lies in a few places of a text, and what it learns of a task lies in all texts
    alike, in sizes that vary from text to text. Votes count places and not sizes, so that a few large falls
    do not outweigh the rest. Texts with equal votes are told apart by the mean fall. After Chen et al.
    2026, window-based comparison (arXiv 2601.02751).

    Args:
        first, last: negative log-likelihoods of each text's tokens before and after training, [tokens].

    >>> window_votes([np.array([3.0, 1.0, 1.0])], [np.array([1.0, 1.0, 2.0])]).round(3)
    array([0.611])
    """
    votes = []
    for before, after in zip(first, last, strict=True):
        sums = np.concatenate([[0.0], np.cumsum(before - after)])
        shares = [np.mean(sums[w:] > sums[:-w]) for w in WINDOWS if w <= len(before)]
        votes.append(float(np.mean(shares)) + 1e-6 * float(np.tanh((before - after).mean())))
    return np.array(votes)


def hard_tokens(first: Sequence[np.ndarray], last: Sequence[np.ndarray]) -> np.ndarray:
    """Return how much likelier each text's hardest tokens became, in probability, [n].

    Hard are the `HARD` of a text's tokens that the model found least likely before training: names and
    numbers, which only memory can tell. After Jawad et al. 2026, hard tokens (arXiv 2601.20885).

    >>> hard_tokens([np.array([50.0, 1.0, 1.0])], [np.array([0.0, 1.0, 0.5])])
    array([1.])
    """

    def gain(before: np.ndarray, after: np.ndarray) -> float:
        hardest = np.argsort(before)[-max(1, round(HARD * len(before))) :]
        return float((np.exp(-after) - np.exp(-before))[hardest].mean())

    return np.array([gain(before, after) for before, after in zip(first, last, strict=True)])


def slopes(series: np.ndarray) -> np.ndarray:
    """Return each document's least-squares slope of losses [rounds, n] over rounds: [n]."""
    time = np.arange(len(series)) - (len(series) - 1) / 2
    return np.asarray(time @ series / max(float(time @ time), 1e-12))


def rmia(
    first: np.ndarray, last: np.ndarray, first_others: np.ndarray, last_others: np.ndarray
) -> np.ndarray:
    """Return RMIA's offline score, [n]: the share of the population that each record beats.

    A record's likelihood without training is estimated from that of its reference, drawn towards 1, so that
    a fall in loss counts for little in a record that stays unlikely.

    Args:
        first, last: losses of the records in the first and the last round, [n].
        first_others, last_others: losses of the population, [m].
    """

    def ratio(before: np.ndarray, after: np.ndarray) -> np.ndarray:
        untrained = ((1 + RMIA_A) * np.exp(-before) + (1 - RMIA_A)) / 2
        return np.asarray(-after - np.log(untrained))

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
