"""The tracing code: innocent clients' scores have the law that the threshold rests on."""

import numpy as np
import pytest
from scipy import stats

from fedproxy_secure.tracing.copies import amplitudes, code_of, marked_numbers
from fedproxy_secure.tracing.suspects import answers_in, judge
from fedproxy_secure.tracing.tardos import Innocence, codeword, probabilities, scores
from tests.support.traced import key_number, marks_like_a_real_llm

ALPHA = 1e-4  # of each test; keys and seeds are fixed, so they never flicker
NAMES = [f"c{i}" for i in range(20)]
MARKS = marks_like_a_real_llm()


def innocent_scores(answers, p, n):
    rng = np.random.default_rng(1)
    words = np.array([codeword(rng.random(len(p)), p) for _ in range(n)])
    return scores(words, answers, p)


def sample(n=4000, m=400):
    rng = np.random.default_rng(0)
    p = probabilities(rng.random(m))
    answers = rng.uniform(-1, 1, size=m)
    return answers, p, innocent_scores(answers, p, n)


def test_innocent_scores_have_mean_zero_and_the_variance_of_the_answers():
    answers, _, found = sample()
    z_mean = found.mean() / (found.std() / np.sqrt(len(found)))
    square = found**2
    z_variance = (square.mean() - np.sum(answers**2)) / (square.std() / np.sqrt(len(found)))
    assert abs(z_mean) < stats.norm.isf(ALPHA / 2)
    assert abs(z_variance) < stats.norm.isf(ALPHA / 2)


@pytest.mark.parametrize("error", [0.5, 0.1, 0.02])
def test_innocents_are_accused_no_more_often_than_said_and_not_absurdly_less(error):
    answers, p, found = sample()
    hits = int(np.sum(found >= Innocence.of(answers, p).threshold(clients=1, error=error)))
    assert stats.binomtest(hits, len(found), error, alternative="greater").pvalue > ALPHA
    # Chernoff's bound of a normal law is at most 1 / (t sqrt(2 pi)) times too large
    assert stats.binomtest(hits, len(found), error / 40, alternative="less").pvalue > ALPHA


def test_a_threshold_half_as_high_would_accuse_innocents():
    answers, p, found = sample()
    limit = Innocence.of(answers, p).threshold(clients=1, error=0.02)
    assert np.mean(found >= limit / 2) > 0.02


@pytest.mark.parametrize("colluders", [1, 2, 3])
def test_colluders_who_interleave_are_traced_and_innocents_are_not(colluders):
    rng = np.random.default_rng(colluders)
    runs, traced = 25, 0
    for run in range(runs):
        code = code_of(key_number(run), MARKS)
        words = code.words(NAMES)
        guilty = rng.choice(20, size=colluders, replace=False)
        rows = np.array([marked_numbers(MARKS, code, words[i]) for i in guilty])
        chosen = rng.integers(colluders, size=(1, *rows.shape[1:]))
        push = rng.normal(size=MARKS.width) * 0.5 * amplitudes(MARKS).mean()
        found = np.take_along_axis(rows, chosen, axis=0)[0] + push
        accused = set(judge(answers_in(found, MARKS, code), code, words, NAMES, error=1e-6).accused)
        assert accused <= {NAMES[i] for i in guilty}
        traced += bool(accused)
    assert traced >= 0.9 * runs
