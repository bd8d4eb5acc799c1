"""The expected result of H-TIES at a coordinate of which only the mean and the spread are known.

Each function returns two tables over z, the mean divided by the spread, for a number of clients and an
election ratio rho. The tables are public constants: averages over draws with a fixed seed, computed once.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

Z_GRID = np.concatenate([np.linspace(0, 2, 81), np.linspace(2.1, 8, 60)])
TABLE_DRAWS = 40_000
TABLE_BINS = 100  # each of equally many simulated coordinates, sorted by z
TABLE_SEED = 20604  # the tables are public constants of (clients, rho, kept); any seed will do
# In simulated coordinates, the spread of what all clients share, divided by that of their differences.
# Chosen on updates of the demo LLM, where values from 0 to 1 changed the distance to exact fusion by at
# most .06 (4 and 16 clients, kept .2 to .8).
COMMON_SCALE = 0.5


@lru_cache(maxsize=8)
def plain_tables(clients: int, rho: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the elected value and the conflict (Eq. 7) at each z of `Z_GRID`, for untrimmed updates.

    Values are in units of the spread: the deviations from the mean have unit variance. Both arrays are
    float64 [len(Z_GRID)].
    """
    rng = np.random.default_rng(TABLE_SEED)
    draws = rng.standard_normal((TABLE_DRAWS // 2, clients))
    draws = np.concatenate([draws, -draws])  # antithetic draws: z = 0 is exactly balanced
    draws -= draws.mean(axis=1, keepdims=True)
    draws *= np.sqrt(clients / max(clients - 1, 1))
    value, conflict = np.empty(len(Z_GRID)), np.empty(len(Z_GRID))
    for i, z in enumerate(Z_GRID):
        x = z + draws
        p = np.maximum(x, 0).mean(axis=1)  # mass of the positive side; n: of the negative side
        n = p - z
        ups = (x > 0).sum(axis=1)
        won = p >= rho * n  # the mean is >= 0, so the negative side never wins
        value[i] = np.where(won, p * clients / np.maximum(ups, 1), 0).mean()
        conflict[i] = 1 - np.abs(2 * ups - clients).mean() / clients
    value[0] = 0.0  # a mean of exactly zero favours no side
    return value, conflict


@lru_cache(maxsize=8)
def trimmed_tables(clients: int, rho: float, kept: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the tables of `plain_tables` for trimmed updates, of which only a share `kept` is not zero.

    With zeros, a coordinate's spread depends on its mean, so one set of deviations cannot be shifted to
    every z. Instead, whole coordinates are drawn, trimmed, sorted by z and averaged in bins.
    """
    rng = np.random.default_rng(TABLE_SEED)
    x = rng.standard_normal((TABLE_DRAWS, clients))
    x += COMMON_SCALE * rng.standard_normal((TABLE_DRAWS, 1))
    magnitude = np.abs(x)
    x[magnitude < np.quantile(magnitude, 1 - kept)] = 0
    mean = x.mean(axis=1)
    sigma = np.sqrt((x**2).mean() - (mean**2).mean())
    x, mean = x[mean != 0], mean[mean != 0]
    x *= np.sign(mean)[:, None]
    p = np.maximum(x, 0).mean(axis=1)
    n = p - np.abs(mean)
    ups, downs = (x > 0).sum(axis=1), (x < 0).sum(axis=1)
    elected = np.where(p >= rho * n, p * clients / np.maximum(ups, 1), 0) / sigma
    disagreement = 1 - np.abs(ups - downs) / clients
    z = np.abs(mean) / sigma
    bins = np.array_split(np.argsort(z), min(TABLE_BINS, len(z)))
    at = np.array([0.0, *(z[b].mean() for b in bins)])
    # at a mean of exactly zero no client moved: no step and full conflict
    value = np.interp(Z_GRID, at, [0.0, *(elected[b].mean() for b in bins)])
    conflict = np.interp(Z_GRID, at, [1.0, *(disagreement[b].mean() for b in bins)])
    beyond = at[-1] < Z_GRID
    value[beyond] += Z_GRID[beyond] - at[-1]
    return value, conflict
