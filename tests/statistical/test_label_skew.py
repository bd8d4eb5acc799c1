"""The skew of labels between clients follows the Dirichlet distribution that is said, and no other."""

from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from fedproxy_secure.config import SplitConfig
from fedproxy_secure.data.partition import split_by_label

LIMIT = 1e-4  # of each test; the seeds are fixed, so they never flicker
LABELS = np.repeat([0, 1, 2, 3], [400, 300, 200, 100])


def skew(alpha, seed):
    """Mean distance, in total variation, of clients' labels from those of all records."""
    owners = split_by_label(LABELS, SplitConfig(clients=10, alpha=alpha, seed=seed))
    counts = np.array([np.bincount(LABELS[owners == client], minlength=4) for client in range(10)])
    everybody = np.bincount(LABELS) / len(LABELS)
    return float(np.abs(counts / counts.sum(1, keepdims=True) - everybody).sum(1).mean() / 2)


def test_a_smaller_alpha_skews_more_and_equal_ones_alike():
    alphas, seeds = (0.1, 1.0, 10.0, 1000.0), range(30)
    skews = [[skew(alpha, seed) for seed in seeds] for alpha in alphas]
    for more, less in pairwise(skews):
        assert np.mean(more) > np.mean(less)
        assert stats.mannwhitneyu(more, less, alternative="two-sided").pvalue < LIMIT
    again = [skew(1.0, seed) for seed in range(30, 60)]
    assert stats.mannwhitneyu(skews[1], again, alternative="two-sided").pvalue > LIMIT


@pytest.mark.parametrize("alpha", [0.3, 3.0])
def test_the_first_clients_labels_follow_their_law_and_that_of_no_other_alpha(alpha):
    """No label has run out for the first client, so its records of one are beta-binomial."""
    labels = np.repeat([0, 1], [300, 100])
    found = []
    for seed in range(2_000):
        owners = split_by_label(labels, SplitConfig(clients=4, alpha=alpha, seed=seed))
        found.append(int((labels[owners == 0] == 1).sum()))
    between = np.random.default_rng(0).random(len(found))

    def p_value(alpha, share):
        """Of the distribution function, made continuous, being uniform."""
        law = stats.betabinom(100, alpha * share, alpha * (1 - share))
        at = np.array(found)
        return stats.kstest(law.cdf(at - 1) + between * law.pmf(at), "uniform").pvalue

    assert p_value(alpha, 0.25) > LIMIT
    for wrong in (p_value(alpha * 2 / 3, 0.25), p_value(alpha * 3 / 2, 0.25), p_value(alpha, 0.5)):
        assert wrong < LIMIT


def test_without_alpha_clients_are_drawn_uniformly():
    """The first client's records of a label are hypergeometric."""
    alike, found = np.zeros_like(LABELS), []
    for seed in range(2_000):
        owners = split_by_label(alike, SplitConfig(clients=10, seed=seed))
        found.append(int((LABELS[owners == 0] == 3).sum()))
    law = stats.hypergeom(1000, 100, 100)
    at, between = np.array(found), np.random.default_rng(0).random(2_000)
    assert stats.kstest(law.cdf(at - 1) + between * law.pmf(at), "uniform").pvalue > LIMIT
    wrong = stats.hypergeom(1000, 110, 100)
    assert stats.kstest(wrong.cdf(at - 1) + between * wrong.pmf(at), "uniform").pvalue < LIMIT
