"""The API's noise is Gaussian of the stated level, new after each text, and cannot be averaged away.

The key is fixed, so each test has one outcome; each bound is two-sided at a false-alarm rate of 1 in 1000.
"""

import numpy as np
import pytest
from scipy import stats

from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.serve.noise import noise

KEY = Secret(b"a key that only this test knows.")
ALPHA = 1e-3
SIZE = 512
LEVEL = 0.7


@pytest.fixture(scope="module")
def drawn() -> np.ndarray:
    """Noise after 200 texts that begin differently, [200, 512]."""
    return np.concatenate([noise(KEY, np.array([i, 3]), level=LEVEL, size=SIZE)[1:] for i in range(200)])


def test_noise_of_answers_is_gaussian_with_the_stated_level(drawn):
    assert stats.kstest(drawn.ravel() / LEVEL, "norm").pvalue > ALPHA
    squares = float(np.square(drawn / LEVEL).sum())
    low, high = stats.chi2.ppf([ALPHA / 2, 1 - ALPHA / 2], drawn.size)
    assert low < squares < high
    bound = stats.norm.ppf(1 - ALPHA / 2) * LEVEL / np.sqrt(drawn.size)
    assert abs(drawn.mean()) < bound


def test_noise_after_one_text_tells_nothing_of_that_after_another(drawn):
    for shift in (1, 7):
        r = np.corrcoef(drawn.ravel(), np.roll(drawn, shift, axis=0).ravel())[0, 1]
        assert abs(r) < stats.norm.ppf(1 - ALPHA / 2) / np.sqrt(drawn.size)
    across = np.corrcoef(drawn[:, :-1].ravel(), drawn[:, 1:].ravel())[0, 1]  # from token to token
    assert abs(across) < stats.norm.ppf(1 - ALPHA / 2) / np.sqrt(drawn.size)


def average_error(answers: np.ndarray) -> float:
    """The mean square of what is left of the noise when answers are averaged, over its level's square."""
    return float(np.square(answers.mean(axis=0) / LEVEL).mean())


def test_asking_one_text_with_many_endings_averages_nothing_and_would_if_noise_were_each_texts_own():
    endings = [np.array([5, 6, 7, ending]) for ending in range(40)]
    low, high = stats.chi2.ppf([ALPHA / 2, 1 - ALPHA / 2], SIZE) / SIZE
    ours = np.stack([noise(KEY, text, level=LEVEL, size=SIZE)[2] for text in endings])
    assert low < average_error(ours) < high  # as large as one answer's
    # known-bad: noise that depends on the whole text, here on its last token
    of_whole_texts = np.stack(
        [noise(KEY, text[::-1].copy(), level=LEVEL, size=SIZE)[2] for text in endings]
    )
    assert low / 40 < average_error(of_whole_texts) < high / 40
