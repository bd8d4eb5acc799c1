"""Differences that are paired by seed, for benches and sample reports."""

from collections.abc import Mapping
from dataclasses import replace

from fedproxy_secure.evidence.estimate import Estimate, mean_interval


def paired_difference(
    a: Mapping[int, float], b: Mapping[int, float], *, metric: str, unit: str
) -> Estimate:
    """Return the mean of `a - b` seed by seed; both must have the same seeds.

    What the seeds share cancels out, so the interval is narrower than without pairing.
    """
    assert set(a) == set(b)
    difference = mean_interval({s: a[s] - b[s] for s in a}, metric=metric, unit=unit)
    how = difference.how.replace("mean over seeds", "mean of paired differences over seeds")
    return replace(difference, how=how)
