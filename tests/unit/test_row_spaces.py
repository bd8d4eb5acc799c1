"""A2, its parts: row spaces, whitening, and what usual scores explain."""

import numpy as np
import pytest

from attacks.reconstruction.row_spaces import row_space, span_residual, unit, whitening
from attacks.reconstruction.spans import unexplained


def test_a_row_space_holds_what_stands_out_of_rounding_and_nothing_else():
    rng = np.random.default_rng(0)
    inputs, noise = rng.normal(size=(5, 40)), 1e-6
    matrix = rng.normal(size=(30, 5)) @ inputs + rng.normal(0, noise, size=(30, 40))
    sigma, right = row_space(matrix, noise=noise)
    assert len(sigma) == 5
    assert span_residual(unit(inputs), right).max() < 1e-4
    assert span_residual(unit(rng.normal(size=(9, 40))), right).min() > 0.5
    assert len(row_space(rng.normal(0, noise, size=(30, 40)), noise=noise)[0]) == 0


def test_whitening_keeps_the_span_and_evens_the_moments():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(500, 12)) * np.linspace(1, 9, 12) + 5
    w = whitening(inputs)
    np.testing.assert_allclose((inputs @ w).T @ (inputs @ w) / 500, np.eye(12), atol=1e-6)
    _, right = row_space(rng.normal(size=(8, 4)) @ inputs[:4], w)
    assert span_residual(unit(inputs[:4] @ w), right).max() < 1e-6
    assert span_residual(unit(inputs[4:] @ w), right).min() > 0.1


def test_an_empty_space_holds_nothing():
    sigma, right = row_space(np.zeros((6, 4)), np.eye(4))
    assert len(sigma) == 0
    assert span_residual(np.eye(4), right).tolist() == [1, 1, 1, 1]


def test_what_usual_scores_explain_is_taken_away_and_what_they_do_not_stays():
    rng = np.random.default_rng(0)
    usual = rng.normal(size=(2, 2000))
    extra = np.zeros(2000)
    extra[:50] = 5.0
    rest = unexplained(3 * usual[0] - usual[1] ** 2 + extra + rng.normal(0, 0.1, 2000), usual)
    assert abs(np.corrcoef(rest[50:], usual[0, 50:])[0, 1]) < 0.3
    assert rest[:50].min() > 10
    assert np.median(np.abs(rest - np.median(rest))) == pytest.approx(0.67, abs=0.05)
