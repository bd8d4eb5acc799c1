"""The tables of `block` fusion are the expectations they stand for, where those are known."""

import numpy as np
import pytest
from scipy.stats import norm

from fedproxy_secure.secagg.expectations import TABLE_DRAWS, Z_GRID, plain_tables, trimmed_tables

ERROR = 5 / np.sqrt(TABLE_DRAWS)  # five deviations of a mean over the draws, of values of unit variance


@pytest.mark.parametrize("rho", [1.0, 1.1, 3.0])
def test_two_clients_are_z_plus_and_minus_one_normal_number(rho):
    """z + a and z - a, a half-normal: both up while a <= z, then one alone while it is elected."""
    value, conflict = plain_tables(2, rho)
    most = Z_GRID * (rho + 1) / (rho - 1) if rho > 1 else np.full(len(Z_GRID), np.inf)
    one_side = Z_GRID * (2 * norm.cdf(Z_GRID) - 1)
    opposed = 2 * Z_GRID * (norm.cdf(most) - norm.cdf(Z_GRID)) + 2 * (norm.pdf(Z_GRID) - norm.pdf(most))
    wanted = one_side + opposed
    assert np.abs(value - wanted)[1:].max() < 2 * ERROR
    assert np.abs(conflict - 2 * norm.sf(Z_GRID)).max() < ERROR


def test_many_clients_are_the_formula_for_an_endless_population():
    value, conflict = plain_tables(64, 1.0)
    wanted = Z_GRID + norm.pdf(Z_GRID) / norm.cdf(Z_GRID)
    assert np.abs(value / wanted - 1)[4:].max() < 0.008
    assert np.abs(conflict - 2 * norm.sf(Z_GRID))[8:].max() < 0.006
    # finite K costs: with four clients the formula is off, which is why there are tables
    assert np.abs(plain_tables(4, 1.0)[0] / wanted - 1)[4:].max() > 0.05


def test_nobody_trimmed_is_the_plain_table():
    for clients, rho in ((4, 1.1), (16, 1.0)):
        inside = Z_GRID < 1.5  # where simulated coordinates are many
        for trimmed, plain in zip(
            trimmed_tables(clients, rho, 0.9999), plain_tables(clients, rho), strict=True
        ):
            assert np.abs(trimmed - plain)[1:][inside[1:]].max() < 0.05
    assert abs(trimmed_tables(4, 1.1, 0.9999)[0][-1] - Z_GRID[-1]) < 0.05


@pytest.mark.parametrize(("clients", "kept"), [(2, 0.5), (4, 0.2), (16, 0.8)])
def test_a_table_begins_at_nothing_elected_and_ends_as_the_mean_and_a_constant(clients, kept):
    value, conflict = trimmed_tables(clients, 1.1, kept)
    assert (value[0], conflict[0]) == (0, 1)
    assert (value[1:] > Z_GRID[1:]).all()  # zeros dilute the mean; what is elected is larger
    assert np.diff(value)[-5:] == pytest.approx(np.diff(Z_GRID)[-5:])
    assert np.abs(np.diff(value)[Z_GRID[1:] > 2]).max() < 0.2  # no jump where the draws end
    assert ((conflict >= 0) & (conflict <= 1)).all()


def test_with_one_contributor_of_two_the_elected_value_is_all_of_it():
    """Kept so few that the other is zero at nearly all coordinates: the mean is half of the value."""
    value, conflict = trimmed_tables(2, 1.0, 0.01)
    typical = Z_GRID > 6.5
    assert value[typical] / Z_GRID[typical] == pytest.approx(2, rel=1e-3)
    assert conflict[typical] == pytest.approx(0.5, abs=1e-3)
